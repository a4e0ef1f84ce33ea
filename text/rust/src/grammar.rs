//! What an answer may be: grammars over the tokens of one tokenizer, by the `llguidance` crate.
//!
//! * [`Vocabulary`]: the tokenizer's tokens as a trie of bytes; built once, shared.
//! * [`Grammar`]: a compiled constraint; immutable.
//! * [`Matcher`]: one answer on its way through a grammar: masks of the next token.

use crate::failure::{Failure, Result};
use crate::stack::on_large_stack;
use crate::tokenizer::LoadedTokenizer;
use llguidance::api::{GrammarWithLexer, ParserLimits, StopReason, TopLevelGrammar};
use llguidance::{ParserFactory, TokenParser};
use serde_json::{json, Value as Json};
use std::sync::{Arc, Mutex, PoisonError};
use toktrie::{TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};

/// Longest sentence that a grammar's failure is told in.
const MAX_REASON_CHARS: usize = 600;

struct Environment {
    tokenizer: Arc<LoadedTokenizer>,
    trie: TokTrie,
    canonical: bool,
}

impl TokenizerEnv for Environment {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    /// How the tokenizer would write these bytes; where that is not exactly these bytes (a
    /// normalizer, half a character), the longest tokens from the left.
    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        if let Ok(text) = std::str::from_utf8(bytes) {
            if let Ok(ids) = self.tokenizer.encode(text, false, false) {
                if self.trie.decode_raw(&ids) == bytes {
                    return ids;
                }
            }
        }
        self.trie.greedy_tokenize(bytes)
    }

    fn tokenize_is_canonical(&self) -> bool {
        self.canonical
    }
}

pub struct Vocabulary {
    factory: ParserFactory,
}

/// The kinds of source text; numbers are `weir_text_grammar_kind` of the C header.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Lark,
    JsonSchema,
    Regex,
    Choice,
}

impl Vocabulary {
    /// `ends`: the tokens that end an answer, at least one; they are never part of its text.
    pub fn new(tokenizer: Arc<LoadedTokenizer>, ends: &[u32]) -> Result<Self> {
        let size = tokenizer.vocab_size();
        let Some(&end) = ends.iter().find(|&&id| id < size) else {
            return Err(Failure::invalid("the model has no end token in its vocabulary"));
        };
        let words =
            (0..size).map(|id| word(&tokenizer, id, ends.contains(&id))).collect::<Vec<_>>();
        let info = TokRxInfo::new(size, end);
        let trie = TokTrie::from(&info, &words);
        let canonical = tokenizer.writes_bytes();
        let environment: TokEnv = Arc::new(Environment { tokenizer, trie, canonical });
        let mut factory = ParserFactory::new_simple(&environment).map_err(refused)?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits { verbose_errors: false, ..ParserLimits::default() };
        let vocabulary = Vocabulary { factory };
        vocabulary.compile(Kind::Regex, "a", "")?;
        Ok(vocabulary)
    }

    /// `frame`: empty, or the Lark text around the answer, in which `@answer` stands for it.
    pub fn compile(&self, kind: Kind, source: &str, frame: &str) -> Result<Grammar> {
        let mut answer = match kind {
            Kind::Lark => GrammarWithLexer::from_lark(source.to_string()),
            Kind::JsonSchema => GrammarWithLexer::from_json_schema(schema(source)?),
            Kind::Regex => GrammarWithLexer::from_regex(source),
            Kind::Choice => GrammarWithLexer::from_lark(choice(source)?),
        };
        answer.name = Some("answer".to_string());
        let mut top = TopLevelGrammar::from_grammar(answer);
        if !frame.is_empty() {
            top.grammars.insert(0, GrammarWithLexer::from_lark(frame.to_string()));
        }
        // What nests deep in the source makes the compiler recurse.
        let parser = on_large_stack(|| {
            let mut parser = self.factory.create_parser(top).map_err(refused)?;
            parser.start_without_prompt();
            Ok(parser)
        })?;
        Ok(Grammar { parser: Mutex::new(parser) })
    }
}

/// The bytes of a token in a text. Special tokens are kept apart by a byte that no text has.
fn word(tokenizer: &LoadedTokenizer, id: u32, ends: bool) -> Vec<u8> {
    if ends || tokenizer.is_special_id(id) {
        let mut word = vec![TokTrie::SPECIAL_TOKEN_MARKER];
        word.extend(tokenizer.id_to_token(id).unwrap_or_default().into_bytes());
        return word;
    }
    tokenizer.id_to_bytes(id).unwrap_or_default()
}

fn schema(source: &str) -> Result<Json> {
    let mut schema: Json = serde_json::from_str(source)
        .map_err(|e| Failure::invalid(format!("the schema is no valid JSON: {e}")))?;
    if schema == Json::Bool(true) {
        schema = json!({});
    }
    let Some(object) = schema.as_object_mut() else {
        return Err(Failure::invalid("the schema must be a JSON object"));
    };
    // How it is written, for the crate: on one line, as Python writes it. Free white space would let
    // an answer spend its tokens on blanks.
    object.insert(
        "x-guidance".to_string(),
        json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "}),
    );
    Ok(schema)
}

fn choice(source: &str) -> Result<String> {
    let values: Vec<String> = serde_json::from_str(source)
        .map_err(|e| Failure::invalid(format!("the choices are no list of strings: {e}")))?;
    if values.is_empty() || values.iter().any(String::is_empty) {
        return Err(Failure::invalid("each choice must be a text, and there must be one"));
    }
    let quoted: Vec<String> =
        values.iter().map(|value| Json::from(value.as_str()).to_string()).collect();
    Ok(format!("start: ANSWER\nANSWER: {}\n", quoted.join("\n  | ")))
}

/// The crate's reason without its notes for developers.
fn refused(error: impl std::fmt::Display) -> Failure {
    let text = format!("{error:#}");
    let text = text.split("\n<").next().unwrap_or_default().trim();
    if text.starts_with("panic: ") {
        return Failure::invalid("the grammar is larger or stranger than what can be compiled");
    }
    Failure::invalid(text.chars().take(MAX_REASON_CHARS).collect::<String>())
}

pub struct Grammar {
    parser: Mutex<TokenParser>,
}

impl Grammar {
    /// At its beginning, with caches of its own: what one answer costs does not depend on others.
    pub fn matcher(&self) -> Matcher {
        let parser = self.parser.lock().unwrap_or_else(PoisonError::into_inner);
        Matcher { inner: llguidance::Matcher::new(Ok(parser.deep_clone())) }
    }
}

pub struct Matcher {
    inner: llguidance::Matcher,
}

/// Whether the answer may end here; numbers are `weir_text_grammar_state` of the C header.
#[derive(Clone, Copy)]
#[repr(i32)]
pub enum State {
    Open = 0,
    MayEnd = 1,
    Complete = 2,
}

impl Matcher {
    /// The answer goes on with `id`, one that the last mask allowed.
    pub fn accept(&mut self, id: u32) -> Result<()> {
        self.inner.consume_token(id).map_err(refused)
    }

    /// Bit per id: what may come next. All clear when the answer is complete.
    pub fn fill_mask(&mut self, mask: &mut [u32]) -> Result<State> {
        mask.fill(0);
        if self.inner.is_stopped() {
            return self.stopped(self.inner.stop_reason());
        }
        let allowed = match self.inner.compute_mask() {
            Ok(allowed) => allowed,
            Err(error) => {
                let reason = self.inner.stop_reason();
                return if reason.is_ok() { self.stopped(reason) } else { Err(refused(error)) };
            }
        };
        let words = allowed.as_slice();
        let count = words.len().min(mask.len());
        mask[..count].copy_from_slice(&words[..count]);
        let accepting = self.inner.is_accepting().map_err(refused)?;
        Ok(if accepting { State::MayEnd } else { State::Open })
    }

    fn stopped(&self, reason: StopReason) -> Result<State> {
        match reason {
            StopReason::NoExtension | StopReason::EndOfSentence => Ok(State::Complete),
            StopReason::NoExtensionBias => Err(Failure::invalid(
                "the grammar wants text here that no token of the model can begin",
            )),
            StopReason::LexerTooComplex | StopReason::ParserTooComplex => {
                Err(Failure::exhausted("the grammar is too complex to be followed here"))
            }
            reason => Err(Failure::internal(format!("the grammar stopped: {reason}"))),
        }
    }
}
