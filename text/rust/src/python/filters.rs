//! Jinja2's filters that minijinja lacks or that take more arguments there.

use super::{methods, to_str};
use minijinja::value::{Kwargs, Rest, Value};
use minijinja::{Error, ErrorKind};

/// Padding that a template may ask for.
const MAX_WIDTH: i64 = 1_000_000;

fn failed(message: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.to_string())
}

/// Positional and keyword arguments under their Python names.
struct Arguments<'a> {
    positional: &'a [Value],
    kwargs: Kwargs,
}

impl<'a> Arguments<'a> {
    fn new(args: &'a [Value]) -> Result<Self, Error> {
        let (positional, kwargs) = methods::split_args(args)?;
        Ok(Arguments { positional, kwargs })
    }

    fn get(&self, index: usize, name: &str) -> Result<Option<Value>, Error> {
        match self.positional.get(index) {
            Some(v) => Ok(Some(v.clone())),
            None => self.kwargs.get(name),
        }
    }

    fn int(&self, index: usize, name: &str, default: i64) -> Result<i64, Error> {
        match self.get(index, name)? {
            Some(v) => {
                i64::try_from(v).map_err(|_| failed(&format!("{name} must be a whole number")))
            }
            None => Ok(default),
        }
    }

    fn flag(&self, index: usize, name: &str) -> Result<bool, Error> {
        Ok(self.get(index, name)?.is_some_and(|v| v.is_true()))
    }
}

fn width(n: i64) -> Result<usize, Error> {
    if n > MAX_WIDTH {
        return Err(failed("the width must be at most 1000000"));
    }
    Ok(n.max(0) as usize)
}

/// `sum(attribute=None, start=0)` of numbers.
pub fn sum(values: &Value, args: Rest<Value>) -> Result<Value, Error> {
    let args = Arguments::new(&args)?;
    let attribute = args.get(0, "attribute")?.filter(|v| !v.is_none());
    let mut numbers = vec![args.get(1, "start")?.unwrap_or(Value::from(0))];
    for item in values.try_iter()? {
        numbers.push(match &attribute {
            Some(key) => item.get_item(key)?,
            None => item,
        });
    }
    if numbers.iter().all(Value::is_integer) {
        let mut total = 0i128;
        for n in numbers {
            total = total.checked_add(i128::try_from(n)?).ok_or(failed("sum is too large"))?;
        }
        return Ok(Value::from(total));
    }
    let mut total = 0.0;
    for n in numbers {
        total += f64::try_from(n).map_err(|_| failed("sum needs numbers"))?;
    }
    Ok(Value::from(total))
}

/// `round(precision=0, method='common')`; halves go to the even neighbour, as in Python.
pub fn round(value: &Value, args: Rest<Value>) -> Result<Value, Error> {
    let args = Arguments::new(&args)?;
    let precision = args.int(0, "precision", 0)?.clamp(-300, 300) as i32;
    let method = args.get(1, "method")?.map_or("common".to_string(), |v| to_str(&v));
    if value.is_integer() && method == "common" && precision >= 0 {
        return Ok(value.clone());
    }
    let x = f64::try_from(value.clone()).map_err(|_| failed("round needs a number"))?;
    let scale = 10f64.powi(precision);
    let rounded = match method.as_str() {
        "common" if precision >= 0 => format!("{x:.*}", precision as usize).parse().unwrap_or(x),
        "common" => (x * scale).round_ties_even() / scale,
        "ceil" => (x * scale).ceil() / scale,
        "floor" => (x * scale).floor() / scale,
        _ => return Err(failed("round: the method is 'common', 'ceil' or 'floor'")),
    };
    Ok(Value::from(rounded))
}

/// `indent(width=4, first=False, blank=False)`.
pub fn indent(value: &Value, args: Rest<Value>) -> Result<String, Error> {
    let args = Arguments::new(&args)?;
    let prefix = match args.get(0, "width")? {
        Some(v) if v.as_str().is_some() => to_str(&v),
        _ => " ".repeat(width(args.int(0, "width", 4)?)?),
    };
    let (first, blank) = (args.flag(1, "first")?, args.flag(2, "blank")?);
    let text = to_str(value) + "\n";
    let mut out = String::new();
    for (i, line) in methods::lines(&text, false).into_iter().enumerate() {
        if i > 0 {
            out.push('\n');
        }
        // The first line follows its own flag, blank or not.
        if if i == 0 { first } else { blank || !line.is_empty() } {
            out.push_str(&prefix);
        }
        out.push_str(line);
    }
    Ok(out)
}

/// `center(width=80)`.
pub fn center(value: &Value, args: Rest<Value>) -> Result<String, Error> {
    let text = to_str(value);
    let width = width(Arguments::new(&args)?.int(0, "width", 80)?)?;
    Ok(methods::center(&text, width.saturating_sub(text.chars().count()), " "))
}

pub fn wordcount(value: &Value) -> usize {
    let in_word = |c: char| c.is_alphanumeric() || c == '_';
    to_str(value).split(|c| !in_word(c)).filter(|w| !w.is_empty()).count()
}

/// `truncate(length=255, killwords=False, end='...', leeway=5)`.
pub fn truncate(value: &Value, args: Rest<Value>) -> Result<String, Error> {
    let args = Arguments::new(&args)?;
    let length = args.int(0, "length", 255)?.max(0) as usize;
    let end = args.get(2, "end")?.map_or("...".to_string(), |v| to_str(&v));
    let leeway = args.int(3, "leeway", 5)?.max(0) as usize;
    let text = to_str(value);
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text);
    }
    let cut: String = text.chars().take(length.saturating_sub(end.chars().count())).collect();
    let words = match cut.rfind(' ') {
        Some(at) if !args.flag(1, "killwords")? => &cut[..at],
        _ => cut.as_str(),
    };
    Ok(format!("{words}{end}"))
}
