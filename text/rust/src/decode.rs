//! Ids to text, one at a time.
//!
//! A `tokenizer.json` names a decoder: a list of stages, each of which rewrites the whole list of
//! tokens. Here each stage is a small transducer that takes the tokens one after the other, hands
//! on what can no longer change, and keeps the rest (at most a few bytes, or one token). Decoding
//! a whole list is the same run followed by a flush, so the two agree by construction and the
//! cost per token does not grow with the length.
//!
//! It equals the `tokenizers` crate's own decoding except in one place: a run of byte tokens
//! (`<0xE4>`) that is not valid UTF-8 as a whole. The crate then gives one U+FFFD for each byte of
//! the run, the good characters included; here the good characters stay, since they may have
//! been sent to a client before the bad byte came.

use crate::failure::{Failure, Result};
use serde_json::Value as Json;
use std::collections::HashMap;
use std::sync::OnceLock;
use tokenizers::decoders::wordpiece::cleanup;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::Decoder;

/// A token, or a piece of one, on its way through the stages.
struct Item {
    text: String,
    /// Which token of the stage's input it belongs to; stages only ask whether it is the first.
    index: usize,
}

#[derive(Debug)]
enum Stage {
    /// No decoder at all: tokens are joined with spaces.
    JoinSpace,
    /// Characters that stand for bytes; all tokens become one string.
    ByteLevel,
    /// Tokens like `<0xE4>` are bytes.
    ByteFallback,
    /// All tokens become one; what follows sees pieces of a single token.
    Fuse,
    Strip {
        content: char,
        start: usize,
        stop: usize,
    },
    /// Strip after Fuse: only the ends of the whole text.
    StripFused {
        content: char,
        start: usize,
        stop: usize,
    },
    Metaspace {
        replacement: char,
        drop_in_first: bool,
    },
    WordPiece {
        prefix: String,
        cleanup: bool,
    },
    /// End-of-word suffix: a space, but nothing in the last token.
    Suffix {
        suffix: String,
    },
    ReplaceLiteral {
        from: String,
        to: String,
    },
    ReplacePattern(Box<DecoderWrapper>),
    /// Stages that need the whole text: kept until the flush.
    Whole(Vec<DecoderWrapper>),
}

/// What one stage remembers between tokens.
#[derive(Default)]
struct StageState {
    bytes: Vec<u8>,
    bytes_index: usize,
    held: Option<Item>,
    /// StripFused: leading characters taken so far, `None` once the text has begun.
    stripped: Option<usize>,
    /// StripFused: trailing characters held back.
    trailing: usize,
    tokens: Vec<Item>,
}

/// The state of one sequence.
pub struct DecodeState {
    stages: Vec<StageState>,
    num_tokens: usize,
}

/// How far the stages before have taken the tokens apart.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    Tokens,
    Pieces,
    Fused,
}

#[derive(Debug)]
pub struct DecodePlan {
    stages: Vec<Stage>,
}

impl DecodePlan {
    /// Tokens write bytes, and nothing else happens to them.
    pub fn is_byte_level(&self) -> bool {
        matches!(self.stages[..], [Stage::ByteLevel])
    }

    /// Reads the decoder of a loaded tokenizer; `None` is a tokenizer without one.
    pub fn new(decoder: Option<&DecoderWrapper>) -> Result<Self> {
        let Some(decoder) = decoder else {
            return Ok(DecodePlan { stages: vec![Stage::JoinSpace] });
        };
        let json = serde_json::to_value(decoder)
            .map_err(|e| Failure::invalid(format!("tokenizer.json: cannot read decoder: {e}")))?;
        let mut flat = Vec::new();
        flatten(&json, &mut flat);
        let mut stages = Vec::new();
        let mut form = Form::Tokens;
        for (i, part) in flat.iter().enumerate() {
            match stage_of(part, form)? {
                Some((stage, next)) => {
                    stages.push(stage);
                    form = next;
                }
                None => {
                    let rest = flat[i..].iter().map(|p| wrapper(p)).collect::<Result<Vec<_>>>()?;
                    stages.push(Stage::Whole(rest));
                    break;
                }
            }
        }
        Ok(DecodePlan { stages })
    }

    pub fn start(&self) -> DecodeState {
        let stages = self
            .stages
            .iter()
            .map(|_| StageState { stripped: Some(0), ..StageState::default() })
            .collect();
        DecodeState { stages, num_tokens: 0 }
    }

    /// Takes the next token; finished text is appended to `out`.
    pub fn push(&self, state: &mut DecodeState, token: String, out: &mut String) -> Result<()> {
        let index = state.num_tokens;
        state.num_tokens += 1;
        self.feed(0, &mut state.stages, Item { text: token, index }, out)
    }

    /// Ends the text: appends what was held back and makes the state new.
    pub fn flush(&self, state: &mut DecodeState, out: &mut String) -> Result<()> {
        let mut stages = std::mem::replace(state, self.start()).stages;
        for (k, stage) in self.stages.iter().enumerate() {
            let st = &mut stages[k];
            let mut items = Vec::new();
            match stage {
                Stage::ByteLevel => {
                    let text = take_utf8(&mut st.bytes, true, Bad::PerSequence);
                    items.push(Item { text, index: 0 });
                }
                Stage::ByteFallback => {
                    let text = take_utf8(&mut st.bytes, true, Bad::PerByte);
                    items.push(Item { text, index: st.bytes_index });
                }
                Stage::Suffix { suffix } => {
                    if let Some(mut item) = st.held.take() {
                        item.text = item.text.replace(suffix.as_str(), "");
                        items.push(item);
                    }
                }
                Stage::Whole(rest) => {
                    let text = decode_whole(rest, std::mem::take(&mut st.tokens))?;
                    items.push(Item { text, index: 0 });
                }
                _ => {}
            }
            for item in items {
                if !item.text.is_empty() {
                    self.feed(k + 1, &mut stages, item, out)?;
                }
            }
        }
        Ok(())
    }

    /// The bytes that a token adds in the middle of a text.
    pub fn token_bytes(&self, token: &str) -> Vec<u8> {
        let mut text = token.to_string();
        for stage in &self.stages {
            match stage {
                Stage::ByteLevel => return byte_level(&text),
                Stage::ByteFallback => {
                    if let Some(byte) = byte_token(&text) {
                        return vec![byte];
                    }
                }
                Stage::Fuse => break,
                Stage::StripFused { .. } => {}
                Stage::Whole(_) => break,
                Stage::Suffix { suffix } => text = text.replace(suffix.as_str(), " "),
                _ => text = rewrite(stage, text, false).unwrap_or_default(),
            }
        }
        text.into_bytes()
    }

    fn feed(
        &self,
        k: usize,
        states: &mut [StageState],
        item: Item,
        out: &mut String,
    ) -> Result<()> {
        let Some(stage) = self.stages.get(k) else {
            out.push_str(&item.text);
            return Ok(());
        };
        let st = &mut states[k];
        let next = match stage {
            Stage::ByteLevel => {
                st.bytes.extend(byte_level(&item.text));
                Item { text: take_utf8(&mut st.bytes, false, Bad::PerSequence), index: 0 }
            }
            Stage::ByteFallback => match byte_token(&item.text) {
                Some(byte) => {
                    if st.bytes.is_empty() && !st.continues_run(item.index) {
                        st.bytes_index = item.index;
                    }
                    st.bytes.push(byte);
                    st.trailing = item.index + 1;
                    let text = take_utf8(&mut st.bytes, false, Bad::PerByte);
                    Item { text, index: st.bytes_index }
                }
                None => {
                    let text = take_utf8(&mut st.bytes, true, Bad::PerByte);
                    if !text.is_empty() {
                        let rest = Item { text, index: st.bytes_index };
                        self.feed(k + 1, states, rest, out)?;
                    }
                    item
                }
            },
            Stage::Fuse => Item { index: 0, ..item },
            Stage::StripFused { content, start, stop } => {
                Item { text: st.strip(&item.text, *content, *start, *stop), index: 0 }
            }
            Stage::Suffix { suffix } => {
                let Some(mut before) = st.held.replace(item) else { return Ok(()) };
                before.text = before.text.replace(suffix.as_str(), " ");
                before
            }
            Stage::Whole(_) => {
                match st.tokens.last_mut() {
                    // Pieces of one token come together again.
                    Some(last) if last.index == item.index => last.text.push_str(&item.text),
                    _ => st.tokens.push(item),
                }
                return Ok(());
            }
            _ => Item { text: rewrite(stage, item.text, item.index == 0)?, index: item.index },
        };
        // An empty token still counts in what follows, but has nothing to hand on.
        if next.text.is_empty() && !self.counts_empty(k + 1) {
            return Ok(());
        }
        self.feed(k + 1, states, next, out)
    }

    /// Whether a stage from k on would do something with an empty token (join it, hold it back).
    fn counts_empty(&self, k: usize) -> bool {
        self.stages[k.min(self.stages.len())..]
            .iter()
            .any(|s| matches!(s, Stage::WordPiece { .. } | Stage::Suffix { .. } | Stage::Whole(_)))
    }
}

impl StageState {
    /// ByteFallback: whether the token at `index` follows a byte token directly.
    fn continues_run(&self, index: usize) -> bool {
        self.trailing == index && index != 0
    }

    fn strip(&mut self, text: &str, content: char, start: usize, stop: usize) -> String {
        let mut out = String::with_capacity(text.len());
        for c in text.chars() {
            if let Some(n) = self.stripped {
                if c == content && n < start {
                    self.stripped = Some(n + 1);
                    continue;
                }
                self.stripped = None;
            }
            if c == content {
                if self.trailing < stop {
                    self.trailing += 1;
                } else {
                    out.push(c);
                }
            } else {
                out.extend(std::iter::repeat_n(content, self.trailing));
                self.trailing = 0;
                out.push(c);
            }
        }
        out
    }
}

/// The stages that look at one token only.
fn rewrite(stage: &Stage, text: String, first: bool) -> Result<String> {
    Ok(match stage {
        Stage::JoinSpace if first => text,
        Stage::JoinSpace => format!(" {text}"),
        Stage::Strip { content, start, stop } => {
            let mut s = text.as_str();
            for _ in 0..*start {
                s = s.strip_prefix(*content).unwrap_or(s);
            }
            for _ in 0..*stop {
                s = s.strip_suffix(*content).unwrap_or(s);
            }
            s.to_string()
        }
        Stage::Metaspace { replacement, drop_in_first } => {
            let space = if first && *drop_in_first { "" } else { " " };
            text.replace(*replacement, space)
        }
        Stage::WordPiece { prefix, cleanup: clean } => {
            let text = match text.strip_prefix(prefix.as_str()) {
                _ if first => text,
                Some(rest) => rest.to_string(),
                None => format!(" {text}"),
            };
            if *clean {
                cleanup(&text)
            } else {
                text
            }
        }
        Stage::ReplaceLiteral { from, to } => text.replace(from.as_str(), to),
        Stage::ReplacePattern(decoder) => {
            decode_whole(std::slice::from_ref(decoder.as_ref()), vec![Item { text, index: 0 }])?
        }
        _ => text,
    })
}

fn decode_whole(decoders: &[DecoderWrapper], tokens: Vec<Item>) -> Result<String> {
    if tokens.is_empty() {
        return Ok(String::new());
    }
    let mut tokens: Vec<String> = tokens.into_iter().map(|i| i.text).collect();
    for decoder in decoders {
        tokens = decoder
            .decode_chain(tokens)
            .map_err(|e| Failure::invalid(format!("the tokenizer's decoder failed: {e}")))?;
    }
    Ok(tokens.concat())
}

fn flatten<'a>(json: &'a Json, out: &mut Vec<&'a Json>) {
    match (json["type"].as_str(), json["decoders"].as_array()) {
        (Some("Sequence"), Some(parts)) => parts.iter().for_each(|p| flatten(p, out)),
        _ => out.push(json),
    }
}

fn wrapper(json: &Json) -> Result<DecoderWrapper> {
    serde_json::from_value(json.clone())
        .map_err(|e| Failure::invalid(format!("tokenizer.json: cannot read decoder: {e}")))
}

/// The stage for one part of the decoder, and the form after it. `None`: it needs the whole text.
fn stage_of(json: &Json, form: Form) -> Result<Option<(Stage, Form)>> {
    let text = |key: &str| json[key].as_str().unwrap_or_default().to_string();
    let number = |key: &str| json[key].as_u64().unwrap_or_default() as usize;
    let character = |key: &str| text(key).chars().next().unwrap_or('\0');
    let kind = text("type");
    Ok(Some(match (kind.as_str(), form) {
        ("ByteLevel", Form::Tokens) => (Stage::ByteLevel, Form::Fused),
        ("ByteFallback", Form::Tokens) => (Stage::ByteFallback, Form::Pieces),
        ("Fuse", _) => (Stage::Fuse, Form::Fused),
        ("Strip", Form::Tokens) => {
            let (content, start, stop) = (character("content"), number("start"), number("stop"));
            (Stage::Strip { content, start, stop }, form)
        }
        ("Strip", Form::Fused) => {
            let (content, start, stop) = (character("content"), number("start"), number("stop"));
            (Stage::StripFused { content, start, stop }, form)
        }
        ("Metaspace", _) => {
            let drop_in_first = text("prepend_scheme") != "never";
            (Stage::Metaspace { replacement: character("replacement"), drop_in_first }, form)
        }
        ("WordPiece", Form::Tokens) => {
            let cleanup = json["cleanup"].as_bool().unwrap_or(false);
            (Stage::WordPiece { prefix: text("prefix"), cleanup }, form)
        }
        ("BPEDecoder", Form::Tokens) => (Stage::Suffix { suffix: text("suffix") }, form),
        ("Replace", _) => match json["pattern"]["String"].as_str() {
            // A longer pattern could lie across two pieces.
            Some(from) if form == Form::Tokens || from.chars().count() == 1 => {
                let from = from.to_string();
                (Stage::ReplaceLiteral { from, to: text("content") }, form)
            }
            None if form == Form::Tokens => (Stage::ReplacePattern(Box::new(wrapper(json)?)), form),
            _ => return Ok(None),
        },
        _ => return Ok(None),
    }))
}

fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() != 2 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}

/// GPT-2's table: printable bytes stand for themselves, the others for characters from U+0100 on.
fn byte_level(token: &str) -> Vec<u8> {
    static TABLE: OnceLock<HashMap<char, u8>> = OnceLock::new();
    let table = TABLE.get_or_init(|| {
        let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        let mut next = 0x100u32;
        let mut map = HashMap::with_capacity(256);
        for b in 0..=255u8 {
            let c = if printable(b) {
                b as u32
            } else {
                next += 1;
                next - 1
            };
            map.insert(char::from_u32(c).unwrap_or('\0'), b);
        }
        map
    });
    let bytes: Option<Vec<u8>> = token.chars().map(|c| table.get(&c).copied()).collect();
    // A token with any other character (an added token) is itself.
    bytes.unwrap_or_else(|| token.as_bytes().to_vec())
}

/// What stands for bytes that are no character.
#[derive(Clone, Copy, PartialEq)]
enum Bad {
    /// One U+FFFD for each maximal broken sequence, as String::from_utf8_lossy.
    PerSequence,
    PerByte,
}

/// Takes what is finished out of `bytes`; an unfinished character stays unless `end`.
fn take_utf8(bytes: &mut Vec<u8>, end: bool, bad: Bad) -> String {
    let mut out = String::new();
    let mut rest: &[u8] = bytes;
    let keep = loop {
        match std::str::from_utf8(rest) {
            Ok(text) => {
                out.push_str(text);
                break 0;
            }
            Err(e) => {
                let (good, tail) = rest.split_at(e.valid_up_to());
                out.push_str(std::str::from_utf8(good).unwrap_or_default());
                let broken = match e.error_len() {
                    Some(n) => n,
                    None if end => tail.len(),
                    None => break tail.len(),
                };
                let marks = if bad == Bad::PerByte { broken } else { 1 };
                out.extend(std::iter::repeat_n(char::REPLACEMENT_CHARACTER, marks));
                rest = &tail[broken..];
            }
        }
    };
    bytes.drain(..bytes.len() - keep);
    out
}
