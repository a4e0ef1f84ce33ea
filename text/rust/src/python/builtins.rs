//! Filters, tests and functions where Jinja2 differs from minijinja, and those that transformers
//! adds: `tojson`, `raise_exception`, `strftime_now`.

use super::{filters, json, methods, repr, to_str};
use crate::failure;
use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State};
use std::fmt;

/// The error of `raise_exception(message)`.
#[derive(Debug)]
pub struct Raised(pub String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

/// The variable that carries the time into `strftime_now`; no template can name it.
pub const NOW: &str = "now_unix_s of the renderer";

pub fn add_to(env: &mut Environment<'static>) {
    env.set_unknown_method_callback(methods::unknown_method);
    env.set_formatter(|out, state, value| match value.kind() {
        ValueKind::Seq | ValueKind::Map | ValueKind::Iterable | ValueKind::Number => {
            out.write_str(&repr(value)).map_err(Error::from)
        }
        _ => minijinja::escape_formatter(out, state, value),
    });
    add_filters(env);
    add_tests(env);
    env.add_function("raise_exception", raise_exception);
    env.add_function("strftime_now", strftime_now);
}

fn add_filters(env: &mut Environment<'static>) {
    env.add_filter("tojson", json::tojson);
    env.add_filter("pprint", |value: &Value| repr(value));
    env.add_filter("attr", attr);
    env.add_filter("sum", filters::sum);
    env.add_filter("round", filters::round);
    env.add_filter("indent", filters::indent);
    env.add_filter("center", filters::center);
    env.add_filter("wordcount", filters::wordcount);
    env.add_filter("truncate", filters::truncate);
    env.add_filter("string", |value: &Value| to_str(value));
    env.add_filter("trim", trim);
    env.add_filter("int", int);
    env.add_filter("float", float);
    env.add_filter("title", title);
    env.add_filter("replace", replace);
    env.add_filter("length", length);
    env.add_filter("count", length);
    env.add_filter("join", join);
}

fn add_tests(env: &mut Environment<'static>) {
    env.add_test("sequence", |v: &Value| {
        matches!(
            v.kind(),
            ValueKind::Seq
                | ValueKind::Iterable
                | ValueKind::Map
                | ValueKind::String
                | ValueKind::Undefined
        )
    });
    env.add_test("iterable", |v: &Value| {
        matches!(
            v.kind(),
            ValueKind::Seq
                | ValueKind::Iterable
                | ValueKind::Map
                | ValueKind::String
                | ValueKind::Undefined
        )
    });
    env.add_test("number", |v: &Value| matches!(v.kind(), ValueKind::Number | ValueKind::Bool));
    env.add_test("callable", |v: &Value| v.kind() == ValueKind::Plain);
}

fn raise_exception(message: &Value) -> Result<Value, Error> {
    let raised = Raised(to_str(message));
    Err(Error::new(ErrorKind::InvalidOperation, raised.0.clone()).with_source(raised))
}

fn strftime_now(state: &State, format: &str) -> Result<String, Error> {
    let now = state.lookup(NOW).and_then(|v| i64::try_from(v).ok()).unwrap_or(0);
    strftime(now, format).map_err(|e| Error::new(ErrorKind::InvalidOperation, e.message))
}

/// The C library's strftime in the process's time zone, as Python's datetime uses it.
fn strftime(unix_s: i64, format: &str) -> failure::Result<String> {
    let bad = || failure::Failure::invalid("strftime_now(): the format cannot be used");
    // A sentinel: an empty result and a result that does not fit look the same.
    let format = std::ffi::CString::new(format!("{format}.")).map_err(|_| bad())?;
    let mut buffer = vec![0u8; 4096];
    let time = unix_s as libc::time_t;
    let mut parts = std::mem::MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: all pointers are to live values, and the buffer's length is given.
    let length = unsafe {
        if libc::localtime_r(&time, parts.as_mut_ptr()).is_null() {
            return Err(bad());
        }
        libc::strftime(buffer.as_mut_ptr().cast(), buffer.len(), format.as_ptr(), parts.as_ptr())
    };
    if length == 0 {
        return Err(bad());
    }
    buffer.truncate(length - 1);
    String::from_utf8(buffer).map_err(|_| bad())
}

/// Attributes only: a dict's keys are items, so there is nothing to find in JSON.
fn attr(_value: &Value, _name: &str) -> Value {
    Value::UNDEFINED
}

fn trim(value: &Value, chars: Option<&str>) -> String {
    methods::strip_both(&to_str(value), chars)
}

/// `int(default=0, base=10)`: what cannot be read gives the default.
fn int(value: &Value, args: Rest<Value>) -> Result<Value, Error> {
    if value.is_undefined() {
        return Err(Error::from(ErrorKind::UndefinedError));
    }
    let (args, kwargs) = methods::split_args(&args)?;
    let default = args.first().cloned().or(kwargs.get("default")?).unwrap_or(Value::from(0));
    let base = args.get(1).cloned().or(kwargs.get("base")?).unwrap_or(Value::from(10));
    let base = u32::try_from(base).ok().filter(|b| (2..=36).contains(b));
    let base = base.ok_or(Error::new(ErrorKind::InvalidOperation, "int(): base is 2 to 36"))?;
    let whole = |f: f64| f.is_finite().then(|| Value::from(f as i128));
    let number = match value.kind() {
        ValueKind::Bool => Some(Value::from(value.is_true() as i64)),
        ValueKind::Number if value.is_integer() => Some(value.clone()),
        ValueKind::Number => f64::try_from(value.clone()).ok().and_then(whole),
        ValueKind::String => {
            let text = methods::strip_both(value.as_str().unwrap_or_default(), None);
            let text = text.replace('_', "");
            match i128::from_str_radix(&text, base) {
                Ok(i) => Some(Value::from(i)),
                Err(_) => text.parse::<f64>().ok().and_then(whole),
            }
        }
        _ => None,
    };
    Ok(number.unwrap_or(default))
}

fn float(value: &Value, default: Option<Value>) -> Value {
    let number = match value.kind() {
        ValueKind::Bool => Some(value.is_true() as i64 as f64),
        ValueKind::Number => f64::try_from(value.clone()).ok(),
        ValueKind::String => {
            methods::strip_both(value.as_str().unwrap_or_default(), None).parse().ok()
        }
        _ => None,
    };
    number.map(Value::from).unwrap_or(default.unwrap_or(Value::from(0.0)))
}

/// Jinja2's filter starts a word only after white space and opening brackets and hyphens.
fn title(value: &Value) -> String {
    let mut out = String::new();
    let mut start = true;
    for c in to_str(value).chars() {
        if start {
            out.extend(c.to_uppercase());
        } else {
            out.extend(c.to_lowercase());
        }
        start = super::is_space(c) || matches!(c, '-' | '(' | '{' | '[' | '<');
    }
    out
}

fn replace(value: &Value, old: &Value, new: &Value, count: Option<i64>) -> String {
    let (text, old, new) = (to_str(value), to_str(old), to_str(new));
    match count.and_then(|n| usize::try_from(n).ok()) {
        Some(n) => text.replacen(&old, &new, n),
        None => text.replace(&old, &new),
    }
}

fn length(value: &Value) -> Result<usize, Error> {
    match value.len() {
        Some(n) => Ok(n),
        None if value.is_undefined() => Ok(0),
        None => match value.kind() {
            ValueKind::Seq | ValueKind::Iterable => Ok(value.try_iter()?.count()),
            kind => Err(Error::new(
                ErrorKind::InvalidOperation,
                format!("a value of type {kind} has no length"),
            )),
        },
    }
}

fn join(value: &Value, args: Rest<Value>) -> Result<String, Error> {
    let (args, kwargs) = methods::split_args(&args)?;
    let separator =
        args.first().cloned().or(kwargs.get("d")?).map_or(String::new(), |v| to_str(&v));
    let attribute: Option<Value> = args.get(1).cloned().or(Kwargs::get(&kwargs, "attribute")?);
    let mut out = String::new();
    for (i, item) in value.try_iter()?.enumerate() {
        if i > 0 {
            out.push_str(&separator);
        }
        match &attribute {
            Some(key) => out.push_str(&to_str(&item.get_item(key)?)),
            None => out.push_str(&to_str(&item)),
        }
    }
    Ok(out)
}
