//! Methods of Python's str, list and dict that templates call. `minijinja-contrib` has most of
//! them; here are those that it lacks or where it differs from Python.

use super::is_space;
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

/// Positional and keyword arguments of a call.
pub fn split_args(args: &[Value]) -> Result<(&[Value], Kwargs), Error> {
    match args.split_last() {
        Some((last, rest)) if last.is_kwargs() => Ok((rest, Kwargs::try_from(last.clone())?)),
        _ => Ok((args, Kwargs::from_iter(Vec::<(String, Value)>::new()))),
    }
}

/// The environment's callback for methods that minijinja does not know.
pub fn unknown_method(
    state: &State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let known = match value.kind() {
        ValueKind::String => string_method(value.as_str().unwrap_or_default(), method, args)?,
        ValueKind::Map => dict_method(value, method, args)?,
        ValueKind::Seq | ValueKind::Iterable => list_method(value, method, args)?,
        _ => None,
    };
    match known {
        Some(value) => Ok(value),
        None => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
    }
}

struct Call<'a> {
    method: &'a str,
    args: &'a [Value],
    kwargs: Kwargs,
}

impl Call<'_> {
    fn fail(&self, message: &str) -> Error {
        Error::new(ErrorKind::InvalidOperation, format!("{}(): {message}", self.method))
    }

    fn arg(&self, index: usize, name: &str) -> Result<Option<Value>, Error> {
        match self.args.get(index) {
            Some(v) => Ok(Some(v.clone())),
            None if name.is_empty() => Ok(None),
            None => self.kwargs.get(name),
        }
    }

    fn required_str(&self, index: usize, name: &str) -> Result<String, Error> {
        match self.arg(index, name)? {
            Some(v) if v.as_str().is_some() => Ok(super::to_str(&v)),
            Some(_) => Err(self.fail("a string is needed")),
            None => Err(Error::from(ErrorKind::MissingArgument)),
        }
    }

    /// A string, or `None` where it is absent or None.
    fn optional_str(&self, index: usize, name: &str) -> Result<Option<String>, Error> {
        match self.arg(index, name)? {
            Some(v) if v.is_none() => Ok(None),
            Some(_) => self.required_str(index, name).map(Some),
            None => Ok(None),
        }
    }

    fn number(&self, index: usize, name: &str, default: i64) -> Result<i64, Error> {
        match self.arg(index, name)? {
            Some(v) if !v.is_none() => {
                i64::try_from(v).map_err(|_| self.fail("a whole number is needed"))
            }
            _ => Ok(default),
        }
    }

    /// A count for padding, bounded so that no template can ask for gigabytes.
    fn width(&self) -> Result<usize, Error> {
        let width = self.number(0, "", 0)?.max(0);
        if width > 1_000_000 {
            return Err(self.fail("the width must be at most 1000000"));
        }
        Ok(width as usize)
    }
}

fn string_method(s: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let (args, kwargs) = split_args(args)?;
    let call = Call { method, args, kwargs };
    let out = match method {
        "strip" | "lstrip" | "rstrip" => Value::from(strip(s, &call)?),
        "split" | "rsplit" => split(s, &call)?,
        "splitlines" => {
            let keep = call.arg(0, "keepends")?.is_some_and(|v| v.is_true());
            lines(s, keep).into_iter().map(Value::from).collect()
        }
        "partition" | "rpartition" => partition(s, &call)?,
        "removeprefix" => {
            let prefix = call.required_str(0, "")?;
            Value::from(s.strip_prefix(prefix.as_str()).unwrap_or(s))
        }
        "removesuffix" => {
            let suffix = call.required_str(0, "")?;
            Value::from(s.strip_suffix(suffix.as_str()).unwrap_or(s))
        }
        "find" | "rfind" | "index" | "rindex" => find(s, &call)?,
        "count" => {
            let what = call.required_str(0, "")?;
            let n = if what.is_empty() { s.chars().count() + 1 } else { s.matches(&what).count() };
            Value::from(n)
        }
        "replace" => {
            let (old, new) = (call.required_str(0, "")?, call.required_str(1, "")?);
            let count = call.number(2, "count", -1)?;
            let text = match usize::try_from(count) {
                Ok(n) => s.replacen(old.as_str(), &new, n),
                Err(_) => s.replace(old.as_str(), &new),
            };
            Value::from(text)
        }
        "join" => {
            let items = call.arg(0, "")?.ok_or(Error::from(ErrorKind::MissingArgument))?;
            let items: Vec<Value> = items.try_iter()?.collect();
            if items.iter().any(|i| i.as_str().is_none()) {
                return Err(call.fail("all items must be strings"));
            }
            let items: Vec<&str> = items.iter().filter_map(|i| i.as_str()).collect();
            Value::from(items.join(s))
        }
        "title" => Value::from(title(s)),
        "swapcase" => {
            let swap = |c: char| -> String {
                if c.is_uppercase() {
                    c.to_lowercase().collect()
                } else {
                    c.to_uppercase().collect()
                }
            };
            Value::from(s.chars().map(swap).collect::<String>())
        }
        "casefold" => Value::from(s.to_lowercase().replace('ß', "ss")),
        "zfill" | "ljust" | "rjust" | "center" => Value::from(pad(s, &call)?),
        "expandtabs" => return Err(call.fail("not supported")),
        _ => match predicate(s, method) {
            Some(b) => Value::from(b),
            None => return Ok(None),
        },
    };
    Ok(Some(out))
}

fn predicate(s: &str, method: &str) -> Option<bool> {
    let all = |f: fn(char) -> bool| !s.is_empty() && s.chars().all(f);
    let cased = s.chars().any(|c| c.is_lowercase() || c.is_uppercase());
    Some(match method {
        "isspace" => all(is_space),
        "isalpha" => all(char::is_alphabetic),
        "isalnum" => all(char::is_alphanumeric),
        "isdigit" | "isnumeric" | "isdecimal" => all(char::is_numeric),
        "islower" => cased && !s.chars().any(char::is_uppercase),
        "isupper" => cased && !s.chars().any(char::is_lowercase),
        _ => return None,
    })
}

fn strip<'a>(s: &'a str, call: &Call) -> Result<&'a str, Error> {
    let chars = call.optional_str(0, "")?;
    let set: Option<Vec<char>> = chars.map(|c| c.chars().collect());
    let out = |c: char| set.as_ref().map_or_else(|| is_space(c), |set| set.contains(&c));
    Ok(match call.method {
        "lstrip" => s.trim_start_matches(out),
        "rstrip" => s.trim_end_matches(out),
        _ => s.trim_matches(out),
    })
}

/// `strip(chars)`, also for the filter `trim`.
pub fn strip_both(s: &str, chars: Option<&str>) -> String {
    match chars {
        Some(chars) => s.trim_matches(|c| chars.contains(c)).to_string(),
        None => s.trim_matches(is_space).to_string(),
    }
}

fn split(s: &str, call: &Call) -> Result<Value, Error> {
    let separator = call.optional_str(0, "sep")?;
    let limit = usize::try_from(call.number(1, "maxsplit", -1)?).unwrap_or(usize::MAX);
    let pieces = limit.saturating_add(1);
    let right = call.method == "rsplit";
    let parts: Vec<&str> = match separator.as_deref() {
        Some("") => return Err(call.fail("empty separator")),
        Some(sep) if right => {
            let mut parts: Vec<&str> = s.rsplitn(pieces, sep).collect();
            parts.reverse();
            parts
        }
        Some(sep) => s.splitn(pieces, sep).collect(),
        None if right => {
            let mut parts = Vec::new();
            let mut rest = s.trim_end_matches(is_space);
            while !rest.is_empty() && parts.len() < limit {
                let start = rest
                    .rfind(is_space)
                    .map_or(0, |i| i + rest[i..].chars().next().map_or(0, char::len_utf8));
                parts.push(&rest[start..]);
                rest = rest[..start].trim_end_matches(is_space);
            }
            if !rest.is_empty() {
                parts.push(rest);
            }
            parts.reverse();
            parts
        }
        None => {
            let mut parts = Vec::new();
            let mut rest = s.trim_start_matches(is_space);
            while !rest.is_empty() && parts.len() < limit {
                let end = rest.find(is_space).unwrap_or(rest.len());
                parts.push(&rest[..end]);
                rest = rest[end..].trim_start_matches(is_space);
            }
            if !rest.is_empty() {
                parts.push(rest);
            }
            parts
        }
    };
    Ok(parts.into_iter().map(Value::from).collect())
}

pub fn lines(s: &str, keep: bool) -> Vec<&str> {
    let is_break = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut out = Vec::new();
    let mut rest = s;
    while let Some(at) = rest.find(is_break) {
        let tail = &rest[at..];
        let width = if tail.starts_with("\r\n") {
            2
        } else {
            tail.chars().next().map_or(1, char::len_utf8)
        };
        out.push(&rest[..if keep { at + width } else { at }]);
        rest = &rest[at + width..];
    }
    if !rest.is_empty() {
        out.push(rest);
    }
    out
}

fn partition(s: &str, call: &Call) -> Result<Value, Error> {
    let sep = call.required_str(0, "")?;
    if sep.is_empty() {
        return Err(call.fail("empty separator"));
    }
    let right = call.method == "rpartition";
    let parts = match if right { s.rsplit_once(&sep) } else { s.split_once(&sep) } {
        Some((before, after)) => [before, sep.as_str(), after],
        None if right => ["", "", s],
        None => [s, "", ""],
    };
    Ok(parts.into_iter().map(Value::from).collect())
}

/// Positions are counted in characters.
fn find(s: &str, call: &Call) -> Result<Value, Error> {
    let what = call.required_str(0, "")?;
    if call.args.len() > 1 {
        return Err(call.fail("start and end are not supported"));
    }
    let right = call.method.starts_with('r');
    let found = if right { s.rfind(&what) } else { s.find(&what) };
    match found {
        Some(at) => Ok(Value::from(s[..at].chars().count())),
        None if call.method.ends_with("find") => Ok(Value::from(-1)),
        None => Err(call.fail("substring not found")),
    }
}

/// `str.title`: a capital after every character that is no letter.
fn title(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    let mut in_word = false;
    for c in s.chars() {
        if in_word {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        in_word = c.is_alphabetic();
    }
    out
}

fn pad(s: &str, call: &Call) -> Result<String, Error> {
    let missing = call.width()?.saturating_sub(s.chars().count());
    let fill = match call.optional_str(1, "")? {
        Some(f) if f.chars().count() != 1 => return Err(call.fail("one fill character is needed")),
        Some(f) => f,
        None => " ".to_string(),
    };
    Ok(match call.method {
        "zfill" => {
            let (sign, digits) = match s.chars().next() {
                Some('+' | '-') => s.split_at(1),
                _ => ("", s),
            };
            format!("{sign}{}{digits}", "0".repeat(missing))
        }
        "ljust" => format!("{s}{}", fill.repeat(missing)),
        "rjust" => format!("{}{s}", fill.repeat(missing)),
        _ => center(s, missing, &fill),
    })
}

pub fn center(s: &str, missing: usize, fill: &str) -> String {
    // CPython puts the odd one to the left only where the width is odd as well.
    let width = s.chars().count() + missing;
    let left = missing / 2 + (missing & width & 1);
    format!("{}{s}{}", fill.repeat(left), fill.repeat(missing - left))
}

fn dict_method(value: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    match method {
        "copy" if args.is_empty() => Ok(Some(value.clone())),
        "clear" | "pop" | "popitem" | "setdefault" | "update" => Err(changes("dict", method)),
        _ => Ok(None),
    }
}

fn list_method(value: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let what = || args.first().ok_or(Error::from(ErrorKind::MissingArgument));
    match method {
        "copy" if args.is_empty() => Ok(Some(value.clone())),
        "count" => {
            let what = what()?;
            Ok(Some(Value::from(value.try_iter()?.filter(|v| v == what).count())))
        }
        "index" => {
            let what = what()?;
            match value.try_iter()?.position(|v| &v == what) {
                Some(i) => Ok(Some(Value::from(i))),
                None => Err(Error::new(ErrorKind::InvalidOperation, "index(): not in the list")),
            }
        }
        "append" | "clear" | "extend" | "insert" | "pop" | "remove" | "reverse" | "sort" => {
            Err(changes("list", method))
        }
        _ => Ok(None),
    }
}

fn changes(kind: &str, method: &str) -> Error {
    Error::new(
        ErrorKind::InvalidOperation,
        format!("{method}() would change a {kind}, which chat templates may not do"),
    )
}
