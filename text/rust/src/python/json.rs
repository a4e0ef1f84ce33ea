//! `json.dumps` as the `tojson` filter of transformers' templates calls it.

use super::{float, number};
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind};
use std::fmt::Write;

pub struct Style {
    ensure_ascii: bool,
    /// One level of indentation; `None` keeps everything on one line.
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

/// The filter: `x | tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub fn tojson(value: &Value, args: minijinja::value::Rest<Value>) -> Result<Value, Error> {
    let style = Style::from_args(&args)?;
    let mut out = String::new();
    style.write(&mut out, value, 0)?;
    Ok(Value::from(out))
}

fn failed(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("tojson: {}", message.into()))
}

impl Style {
    fn from_args(args: &[Value]) -> Result<Style, Error> {
        let (positional, kwargs) = super::methods::split_args(args)?;
        let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
        if positional.len() > names.len() {
            return Err(Error::from(ErrorKind::TooManyArguments));
        }
        let arg = |i: usize| -> Result<Option<Value>, Error> {
            let named: Option<Value> = Kwargs::get(&kwargs, names[i])?;
            Ok(positional.get(i).cloned().or(named).filter(|v| !v.is_none()))
        };
        let flag = |v: Option<Value>| v.is_some_and(|v| v.is_true());
        let indent = match arg(1)? {
            None => None,
            Some(v) => Some(match v.as_str() {
                Some(s) => s.to_string(),
                None => {
                    let n = i64::try_from(v).map_err(|_| failed("indent must be a number"))?;
                    if n > 1000 {
                        return Err(failed("indent must be at most 1000"));
                    }
                    " ".repeat(usize::try_from(n).unwrap_or(0))
                }
            }),
        };
        let (item_separator, key_separator) = match arg(2)? {
            None if indent.is_some() => (",".to_string(), ": ".to_string()),
            None => (", ".to_string(), ": ".to_string()),
            Some(pair) => {
                let pair: Vec<Value> = pair.try_iter()?.collect();
                match pair.as_slice() {
                    [a, b] if a.as_str().is_some() && b.as_str().is_some() => {
                        (super::to_str(a), super::to_str(b))
                    }
                    _ => return Err(failed("separators must be two strings")),
                }
            }
        };
        let style = Style {
            ensure_ascii: flag(arg(0)?),
            indent,
            item_separator,
            key_separator,
            sort_keys: flag(arg(3)?),
        };
        kwargs.assert_all_used()?;
        Ok(style)
    }

    fn write(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > 256 {
            return Err(failed("the value is nested too deeply"));
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&json_number(value)),
            ValueKind::String => self.write_string(out, value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.write_all(out, depth, ('[', ']'), &items, |out, item| {
                    self.write(out, item, depth + 1)
                })?
            }
            ValueKind::Map => {
                let mut entries = Vec::new();
                for key in value.try_iter()? {
                    entries.push((key_string(&key)?, value.get_item(&key)?));
                }
                if self.sort_keys {
                    entries.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.write_all(out, depth, ('{', '}'), &entries, |out, (key, item)| {
                    self.write_string(out, key);
                    out.push_str(&self.key_separator);
                    self.write(out, item, depth + 1)
                })?
            }
            kind => return Err(failed(format!("a value of type {kind} is not JSON"))),
        }
        Ok(())
    }

    fn write_all<T>(
        &self,
        out: &mut String,
        depth: usize,
        brackets: (char, char),
        items: &[T],
        mut write: impl FnMut(&mut String, &T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        out.push(brackets.0);
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                out.push_str(&self.item_separator);
            }
            self.new_line(out, depth + 1);
            write(out, item)?;
        }
        if !items.is_empty() {
            self.new_line(out, depth);
        }
        out.push(brackets.1);
        Ok(())
    }

    fn new_line(&self, out: &mut String, depth: usize) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(indent.as_str(), depth));
        }
    }

    fn write_string(&self, out: &mut String, text: &str) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\x08' => out.push_str("\\b"),
                '\x0c' => out.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && !(' '..='~').contains(&c)) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

fn json_number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(f) if f.is_nan() => "NaN".to_string(),
        Ok(f) if f.is_infinite() => if f > 0.0 { "Infinity" } else { "-Infinity" }.to_string(),
        Ok(f) if !value.is_integer() => float(f),
        _ => number(value),
    }
}

fn key_string(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(super::to_str(key)),
        ValueKind::None => Ok("null".to_string()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.to_string()),
        ValueKind::Number => Ok(json_number(key)),
        kind => Err(failed(format!("a key of type {kind} is not JSON"))),
    }
}
