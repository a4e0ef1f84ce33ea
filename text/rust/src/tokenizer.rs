//! One loaded tokenizer: `tokenizer.json` and the special tokens that the other two files name.

use crate::decode::{DecodePlan, DecodeState};
use crate::failure::{Failure, Result};
use serde_json::{Map, Value as Json};
use std::sync::Arc;
use tokenizers::{
    AddedToken, AddedVocabulary, Model, OffsetType, PreTokenizedString, PreTokenizer, Tokenizer,
};

const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

pub struct LoadedTokenizer {
    inner: Tokenizer,
    /// The same added tokens, but special ones written in a text stay text.
    plain_vocabulary: AddedVocabulary,
    decode: DecodePlan,
    vocab_size: u32,
    added: Vec<Added>,
    named: Vec<(String, String)>,
}

pub struct Added {
    pub id: u32,
    pub content: String,
    pub special: bool,
}

impl LoadedTokenizer {
    /// `config` and `special` are empty where the model folder has no such file.
    pub fn new(tokenizer: &[u8], config: &[u8], special: &[u8]) -> Result<Self> {
        let config = parse_object(config, "tokenizer_config.json")?;
        let special = parse_object(special, "special_tokens_map.json")?;
        let mut inner = Tokenizer::from_bytes(tokenizer)
            .map_err(|e| Failure::invalid(format!("tokenizer.json cannot be read: {e}")))?;
        // How long a text may be is the server's decision; nothing is cut or filled up in silence.
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|e| Failure::invalid(format!("tokenizer.json: truncation: {e}")))?;
        add_declared_tokens(&mut inner, &config)?;
        let named = named_tokens(&config, &special);
        let mut plain_vocabulary = inner.get_added_vocabulary().clone();
        plain_vocabulary.set_encode_special_tokens(true);
        let mut added: Vec<Added> = inner
            .get_added_tokens_decoder()
            .into_iter()
            .map(|(id, t)| Added { id, content: t.content, special: t.special })
            .collect();
        added.sort_by_key(|t| t.id);
        let vocab_size = vocab_size(&inner)?;
        let decode = DecodePlan::new(inner.get_decoder())?;
        Ok(LoadedTokenizer { inner, plain_vocabulary, decode, vocab_size, added, named })
    }

    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<u32>> {
        let encoding = if parse_special {
            self.inner.encode_fast(text, add_special)
        } else {
            self.encode_plain(text, add_special)
        };
        encoding
            .map(|e| e.get_ids().to_vec())
            .map_err(|e| Failure::invalid(format!("the text cannot be tokenized: {e}")))
    }

    /// The crate's own steps with another added vocabulary: its switch is not per call.
    fn encode_plain(
        &self,
        text: &str,
        add_special: bool,
    ) -> tokenizers::Result<tokenizers::Encoding> {
        let mut parts: PreTokenizedString =
            self.plain_vocabulary.extract_and_normalize(self.inner.get_normalizer(), text);
        if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut parts)?;
        }
        parts.tokenize(|part| self.inner.get_model().tokenize(part.get()))?;
        let encoding = parts.into_encoding(None, 0, OffsetType::None)?;
        self.inner.post_process(encoding, None, add_special)
    }

    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let mut out = String::new();
        let mut state = self.decode.start();
        for &id in ids {
            self.decode_next(&mut state, id, skip_special, &mut out)?;
        }
        self.decode.flush(&mut state, &mut out)?;
        Ok(out)
    }

    fn decode_next(
        &self,
        state: &mut DecodeState,
        id: u32,
        skip_special: bool,
        out: &mut String,
    ) -> Result<()> {
        match self.inner.id_to_token(id) {
            Some(token) if !(skip_special && self.is_special(&token)) => {
                self.decode.push(state, token, out)
            }
            _ => Ok(()),
        }
    }

    fn is_special(&self, token: &str) -> bool {
        self.inner.get_added_vocabulary().is_special_token(token)
    }

    pub fn vocab_size(&self) -> u32 {
        self.vocab_size
    }

    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    pub fn id_to_bytes(&self, id: u32) -> Option<Vec<u8>> {
        self.inner.id_to_token(id).map(|token| self.decode.token_bytes(&token))
    }

    pub fn is_special_id(&self, id: u32) -> bool {
        self.inner.id_to_token(id).is_some_and(|token| self.is_special(&token))
    }

    /// Whether a text's bytes are those of its tokens, wherever it is cut.
    pub fn writes_bytes(&self) -> bool {
        self.decode.is_byte_level()
    }

    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    pub fn added(&self, index: usize) -> Option<&Added> {
        self.added.get(index)
    }

    pub fn named(&self, index: usize) -> Option<&(String, String)> {
        self.named.get(index)
    }
}

/// One sequence's text as it comes.
pub struct Stream {
    tokenizer: Arc<LoadedTokenizer>,
    skip_special: bool,
    state: DecodeState,
}

impl Stream {
    pub fn new(tokenizer: Arc<LoadedTokenizer>, skip_special: bool) -> Self {
        let state = tokenizer.decode.start();
        Stream { tokenizer, skip_special, state }
    }

    pub fn push(&mut self, id: u32) -> Result<String> {
        let mut out = String::new();
        self.tokenizer.decode_next(&mut self.state, id, self.skip_special, &mut out)?;
        Ok(out)
    }

    pub fn flush(&mut self) -> Result<String> {
        let mut out = String::new();
        self.tokenizer.decode.flush(&mut self.state, &mut out)?;
        Ok(out)
    }
}

fn parse_object(bytes: &[u8], file: &str) -> Result<Map<String, Json>> {
    if bytes.is_empty() {
        return Ok(Map::new());
    }
    match serde_json::from_slice(bytes) {
        Ok(Json::Object(map)) => Ok(map),
        Ok(_) => Err(Failure::invalid(format!("{file} is not a JSON object"))),
        Err(e) => Err(Failure::invalid(format!("{file} is not valid JSON: {e}"))),
    }
}

/// A special token is written as a string or as {"content": string, ...}.
fn token_content(value: &Json) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// `added_tokens_decoder` of tokenizer_config.json may declare tokens that tokenizer.json lacks.
fn add_declared_tokens(inner: &mut Tokenizer, config: &Map<String, Json>) -> Result<()> {
    let Some(declared) = config.get("added_tokens_decoder").and_then(Json::as_object) else {
        return Ok(());
    };
    let mut missing = Vec::new();
    for (key, value) in declared {
        let file = "tokenizer_config.json: added_tokens_decoder";
        let id: u32 = key
            .parse()
            .map_err(|_| Failure::invalid(format!("{file}: \"{key}\" is not a token id")))?;
        let content = token_content(value)
            .ok_or_else(|| Failure::invalid(format!("{file}: token {id} has no \"content\"")))?;
        if inner.token_to_id(content).is_none() {
            let flag = |name: &str| value.get(name).and_then(Json::as_bool);
            let special = flag("special").unwrap_or(false);
            let token = AddedToken::from(content, special)
                .single_word(flag("single_word").unwrap_or(false))
                .lstrip(flag("lstrip").unwrap_or(false))
                .rstrip(flag("rstrip").unwrap_or(false))
                .normalized(flag("normalized").unwrap_or(!special));
            missing.push((id, token));
        }
    }
    missing.sort_by_key(|(id, _)| *id);
    for (id, token) in missing {
        let content = token.content.clone();
        if token.special {
            inner.add_special_tokens(&[token]);
        } else {
            inner.add_tokens(&[token]);
        }
        let got = inner.token_to_id(&content);
        if got != Some(id) {
            let got = got.map_or("no id".to_string(), |g| g.to_string());
            return Err(Failure::invalid(format!(
                "tokenizer_config.json gives the token \"{content}\" the id {id}, but it does not \
                 follow on the tokens of tokenizer.json, which would make it {got}; the two files \
                 do not belong together"
            )));
        }
    }
    Ok(())
}

/// The variables that chat templates see, as transformers gives them: the seven usual names and
/// the names that the model defines. tokenizer_config.json wins over special_tokens_map.json.
fn named_tokens(config: &Map<String, Json>, special: &Map<String, Json>) -> Vec<(String, String)> {
    let mut out = Vec::new();
    for name in NAMED {
        let content = [config, special].iter().find_map(|m| m.get(name).and_then(token_content));
        if let Some(content) = content {
            out.push((name.to_string(), content.to_string()));
        }
    }
    for map in [config, special] {
        for key in ["extra_special_tokens", "model_specific_special_tokens"] {
            for (name, value) in map.get(key).and_then(Json::as_object).into_iter().flatten() {
                if let Some(content) = token_content(value) {
                    if !out.iter().any(|(n, _)| n == name) {
                        out.push((name.clone(), content.to_string()));
                    }
                }
            }
        }
    }
    out
}

fn vocab_size(inner: &Tokenizer) -> Result<u32> {
    let in_model = inner.get_model().get_vocab().into_values().max();
    let in_added = inner.get_added_vocabulary().get_added_tokens_decoder().keys().copied().max();
    match in_model.max(in_added) {
        None => Err(Failure::invalid("tokenizer.json has no tokens at all")),
        Some(id) if id >= i32::MAX as u32 => Err(Failure::invalid(format!(
            "tokenizer.json has the token id {id}; ids must be \
                                          smaller than {}",
            i32::MAX
        ))),
        Some(id) => Ok(id + 1),
    }
}
