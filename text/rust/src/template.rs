//! Chat templates as transformers renders them.
//!
//! The environment is transformers' own: blocks trimmed, `raise_exception`, `strftime_now`, its
//! `tojson`, loop controls, `{% generation %}`, and of Python what `crate::python` has. `messages`,
//! `tools`, `documents` and `add_generation_prompt` are always defined (None where absent), as
//! there.

use crate::failure::{Failure, Result};
use crate::python::{self, builtins};
use crate::stack::on_large_stack;
use indexmap::IndexMap;
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior};
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::io::Write;

/// Instructions that one rendering may take. A conversation of a thousand messages takes about a
/// hundred thousand.
const FUEL: u64 = 5_000_000;
/// Bytes of a template's source; published ones have up to some tens of thousands.
const MAX_SOURCE_BYTES: usize = 1 << 20;
/// Bytes that one rendering may give.
const MAX_OUTPUT_BYTES: usize = 64 << 20;
const MAX_RECURSION: usize = 200;
/// Bytes of one tag without its string literals. The compiler folds constants in quadratic time.
const MAX_TAG_BYTES: usize = 8192;

/// Marks the end of the message that is to be continued, as transformers does it. The space shows
/// whether the template strips the message.
const CONTINUE_TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

const RESERVED: [&str; 4] = ["messages", "tools", "documents", "add_generation_prompt"];

pub struct Templates {
    env: Environment<'static>,
    sources: IndexMap<String, String>,
    variables: Vec<(String, String)>,
}

pub struct Chat<'a> {
    pub template_name: &'a str,
    pub messages_json: &'a [u8],
    pub tools_json: &'a [u8],
    pub documents_json: &'a [u8],
    pub kwargs_json: &'a [u8],
    pub add_generation_prompt: bool,
    pub continue_final_message: bool,
    pub now_unix_s: i64,
}

impl Templates {
    pub fn new() -> Self {
        let mut env = Environment::new();
        env.set_trim_blocks(true);
        env.set_lstrip_blocks(true);
        env.set_auto_escape_callback(|_| AutoEscape::None);
        env.set_undefined_behavior(UndefinedBehavior::Lenient);
        env.set_fuel(Some(FUEL));
        env.set_recursion_limit(MAX_RECURSION);
        minijinja_contrib::add_to_environment(&mut env);
        builtins::add_to(&mut env);
        env.remove_global("debug");
        Templates { env, sources: IndexMap::new(), variables: Vec::new() }
    }

    pub fn add(&mut self, name: &str, source: &str) -> Result<()> {
        if source.len() > MAX_SOURCE_BYTES {
            return Err(Failure::invalid(format!(
                "the chat template has {} bytes; at most {MAX_SOURCE_BYTES} are read",
                source.len()
            )));
        }
        check_tags(source)?;
        let compiled = replace_generation_tags(source);
        on_large_stack(|| {
            self.env.add_template_owned(name.to_string(), compiled).map_err(|e| {
                let why = sentence(&e);
                Failure::invalid(format!("the chat template cannot be compiled: {why}"))
            })
        })?;
        self.sources.insert(name.to_string(), source.to_string());
        Ok(())
    }

    pub fn add_json(&mut self, json: &[u8]) -> Result<()> {
        let root: Json = serde_json::from_slice(json)
            .map_err(|e| Failure::invalid(format!("not valid JSON: {e}")))?;
        let bad = || {
            Failure::invalid(
                "\"chat_template\" must be a string or a list of {\"name\", \"template\"} objects",
            )
        };
        match root.get("chat_template") {
            None | Some(Json::Null) => Ok(()),
            Some(Json::String(source)) => self.add("default", source),
            Some(Json::Array(list)) => {
                for entry in list {
                    let name = entry["name"].as_str().ok_or_else(bad)?;
                    self.add(name, entry["template"].as_str().ok_or_else(bad)?)?;
                }
                Ok(())
            }
            Some(_) => Err(bad()),
        }
    }

    pub fn set_variable(&mut self, name: &str, value: &str) {
        self.variables.push((name.to_string(), value.to_string()));
    }

    pub fn get(&self, index: usize) -> Option<(&String, &String)> {
        self.sources.get_index(index)
    }

    pub fn render(&self, chat: &Chat) -> Result<String> {
        let mut messages = parse(chat.messages_json, "messages")?;
        check_objects(&messages, "messages")?;
        if messages.as_array().is_none_or(|list| list.is_empty()) {
            return Err(Failure::invalid("messages is empty; a chat needs at least one message"));
        }
        let tools = parse(chat.tools_json, "tools")?;
        if !tools.is_null() {
            check_objects(&tools, "tools")?;
        }
        let documents = parse(chat.documents_json, "documents")?;
        if !documents.is_null() {
            check_objects(&documents, "documents")?;
        }
        let (name, source) = self.choose(chat.template_name, !tools.is_null())?;
        let mut final_text = None;
        if chat.continue_final_message {
            if chat.add_generation_prompt {
                return Err(Failure::invalid(
                    "continue_final_message and add_generation_prompt exclude each other: the one \
                     goes on with the last message, the other opens a new one",
                ));
            }
            final_text = Some(mark_final_message(&mut messages)?);
            if !source.contains("content") {
                return Err(Failure::invalid(
                    "continue_final_message cannot be used: the chat template does not use \
                     \"content\"",
                ));
            }
        }
        let mut context: BTreeMap<String, Value> = BTreeMap::new();
        for (key, value) in &self.variables {
            context.insert(key.clone(), Value::from(value.as_str()));
        }
        self.add_kwargs(&mut context, chat.kwargs_json)?;
        context.insert("messages".into(), python::from_json(messages));
        context.insert("tools".into(), python::from_json(tools));
        context.insert("documents".into(), python::from_json(documents));
        context.insert("add_generation_prompt".into(), Value::from(chat.add_generation_prompt));
        context.insert(builtins::NOW.into(), Value::from(chat.now_unix_s));
        let text = on_large_stack(|| self.run(name, context))?;
        match final_text {
            Some(final_text) => cut_after_final_message(text, &final_text),
            None => Ok(text),
        }
    }

    /// transformers' rule: the named one, else "tool_use" when there are tools, else "default".
    fn choose(&self, name: &str, has_tools: bool) -> Result<(&str, &str)> {
        let wanted = if !name.is_empty() {
            name
        } else if has_tools && self.sources.contains_key("tool_use") {
            "tool_use"
        } else {
            "default"
        };
        match self.sources.get_key_value(wanted) {
            Some((name, source)) => Ok((name, source)),
            None => {
                let names: Vec<&str> = self.sources.keys().map(String::as_str).collect();
                Err(Failure::not_found(format!(
                    "the model has no chat template named \"{wanted}\"; it has: {}",
                    if names.is_empty() { "none".to_string() } else { names.join(", ") }
                )))
            }
        }
    }

    fn add_kwargs(&self, context: &mut BTreeMap<String, Value>, json: &[u8]) -> Result<()> {
        match parse(json, "template arguments")? {
            Json::Null => Ok(()),
            Json::Object(map) => {
                for (key, value) in map {
                    if RESERVED.contains(&key.as_str()) {
                        return Err(Failure::invalid(format!(
                            "the template argument \"{key}\" has a field of its own"
                        )));
                    }
                    context.insert(key, python::from_json(value));
                }
                Ok(())
            }
            _ => Err(Failure::invalid("template arguments must be a JSON object")),
        }
    }

    fn run(&self, name: &str, context: BTreeMap<String, Value>) -> Result<String> {
        let template = self.env.get_template(name).map_err(|e| describe(&e))?;
        let mut out = Limited { bytes: Vec::new(), over: false };
        let rendered = template.render_captured_to(context, &mut out).map(|_| ());
        if out.over {
            return Err(Failure::exhausted(format!(
                "the chat template gave more than {} MiB of text",
                MAX_OUTPUT_BYTES >> 20
            )));
        }
        rendered.map_err(|e| describe(&e))?;
        String::from_utf8(out.bytes)
            .map_err(|_| Failure::internal("the chat template gave text that is not UTF-8"))
    }
}

/// Takes text up to the limit.
struct Limited {
    bytes: Vec<u8>,
    over: bool,
}

impl Write for Limited {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        if self.bytes.len() + data.len() > MAX_OUTPUT_BYTES {
            self.over = true;
            return Err(std::io::Error::other("too much text"));
        }
        self.bytes.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Empty input is null.
fn parse(json: &[u8], what: &str) -> Result<Json> {
    if json.is_empty() {
        return Ok(Json::Null);
    }
    serde_json::from_slice(json)
        .map_err(|e| Failure::invalid(format!("{what}: not valid JSON: {e}")))
}

fn check_objects(json: &Json, what: &str) -> Result<()> {
    let Some(list) = json.as_array() else {
        return Err(Failure::invalid(format!("{what} must be a JSON array of objects")));
    };
    match list.iter().position(|item| !item.is_object()) {
        Some(i) => Err(Failure::invalid(format!("{what}[{i}] must be a JSON object"))),
        None => Ok(()),
    }
}

/// Puts the tag behind the last message's text and returns that text.
fn mark_final_message(messages: &mut Json) -> Result<String> {
    let last = messages.as_array_mut().and_then(|list| list.last_mut());
    let text = match last.and_then(|m| m.get_mut("content")) {
        Some(Json::Array(blocks)) => {
            blocks.iter_mut().rev().find_map(|block| block.get_mut("text"))
        }
        other => other,
    };
    match text {
        Some(Json::String(text)) => {
            let before = text.clone();
            text.push_str(CONTINUE_TAG);
            Ok(before)
        }
        _ => Err(Failure::invalid(
            "continue_final_message is set, but the last message has no text to continue",
        )),
    }
}

fn cut_after_final_message(mut text: String, final_text: &str) -> Result<String> {
    let tag = CONTINUE_TAG.trim_end();
    let shown = text.contains(final_text.trim_matches(python::is_space));
    let Some(at) = text.rfind(tag).filter(|_| shown) else {
        return Err(Failure::invalid(
            "continue_final_message is set, but the chat template does not show the last message \
             as it is",
        ));
    };
    let keeps_space = text[at..].starts_with(CONTINUE_TAG);
    text.truncate(at);
    if !keeps_space {
        text.truncate(text.trim_end_matches(python::is_space).len());
    }
    Ok(text)
}

/// `{% generation %}` marks what the model wrote, for training. Here it is a scope and no more, so
/// it becomes `{% with %}`, which is one. Comments, raw blocks and text stay as they are.
fn replace_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    let mut raw = false;
    while let Some(at) = rest.find('{') {
        let (before, tail) = rest.split_at(at);
        out.push_str(before);
        if !raw && tail.starts_with("{#") {
            let end = tail.find("#}").map_or(tail.len(), |i| i + 2);
            out.push_str(&tail[..end]);
            rest = &tail[end..];
        } else if tail.starts_with("{%") {
            let end = tail.find("%}").map_or(tail.len(), |i| i + 2);
            let tag = &tail[..end];
            let name =
                tag.trim_start_matches(['{', '%', '-', '+']).trim_end_matches(['}', '%', '-', '+']);
            match name.trim() {
                "generation" if !raw => out.push_str(&tag.replace("generation", "with")),
                "endgeneration" if !raw => out.push_str(&tag.replace("endgeneration", "endwith")),
                other => {
                    raw = if raw { other != "endraw" } else { other == "raw" };
                    out.push_str(tag);
                }
            }
            rest = &tail[end..];
        } else {
            out.push('{');
            rest = &tail[1..];
        }
    }
    out.push_str(rest);
    out
}

/// Refuses a tag that is longer than any that a person wrote.
fn check_tags(source: &str) -> Result<()> {
    let bytes = source.as_bytes();
    let mut start = 0;
    while start + 1 < bytes.len() {
        match (bytes[start], bytes[start + 1]) {
            (b'{', b'{' | b'%') => {}
            (b'{', b'#') => {
                let Some(length) = source[start..].find("#}") else { return Ok(()) };
                start += length + 2;
                continue;
            }
            _ => {
                start += 1;
                continue;
            }
        }
        let mut quote = None;
        let mut length = 0;
        let mut i = start + 2;
        while i < bytes.len() {
            match (quote, bytes[i]) {
                (Some(_), b'\\') => i += 1,
                (Some(q), b) if b == q => quote = None,
                (Some(_), _) => {}
                (None, b @ (b'\'' | b'"')) => quote = Some(b),
                (None, b'}') if matches!(bytes[i - 1], b'}' | b'%') => break,
                (None, _) => length += 1,
            }
            i += 1;
        }
        if length > MAX_TAG_BYTES && i < bytes.len() {
            let line = 1 + bytes[..start].iter().filter(|b| **b == b'\n').count();
            return Err(Failure::invalid(format!(
                "the chat template has a tag of {length} bytes in line {line}; at most \
                 {MAX_TAG_BYTES} are compiled"
            )));
        }
        start = i; // without an end, the compiler has its own words for it
    }
    Ok(())
}

fn describe(error: &Error) -> Failure {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(e) = source {
        if let Some(raised) = e.downcast_ref::<builtins::Raised>() {
            return Failure::invalid(format!("the chat template refuses these messages: {raised}"));
        }
        if e.downcast_ref::<Error>().is_some_and(|e| e.kind() == ErrorKind::OutOfFuel) {
            return Failure::exhausted(
                "the chat template does not come to an end: it was stopped after 5 million \
                 instructions",
            );
        }
        source = e.source();
    }
    Failure::invalid(format!("the chat template failed: {}", sentence(error)))
}

fn sentence(error: &Error) -> String {
    let what = match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    match error.line() {
        Some(line) => format!("{what} (line {line})"),
        None => what,
    }
}
