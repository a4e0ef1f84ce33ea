//! The C ABI of `include/weir_text.h`. It turns pointers into
//! slices and back, and panics into errors. What the functions mean is said in the header.

use crate::failure::{Failure, Result};
use crate::grammar::{Grammar, Kind, Matcher, Vocabulary};
use crate::template::{Chat, Templates};
use crate::tokenizer::{LoadedTokenizer, Stream};
use std::mem::ManuallyDrop;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Str {
    data: *const u8,
    len: usize,
}

#[repr(C)]
pub struct Buffer {
    data: *mut u8,
    len: usize,
    capacity: usize,
}

#[repr(C)]
pub struct Ids {
    data: *mut u32,
    len: usize,
    capacity: usize,
}

impl Str {
    unsafe fn bytes<'a>(self) -> &'a [u8] {
        if self.len == 0 || self.data.is_null() {
            return &[];
        }
        std::slice::from_raw_parts(self.data, self.len)
    }

    unsafe fn text<'a>(self, what: &str) -> Result<&'a str> {
        std::str::from_utf8(self.bytes()).map_err(|e| {
            Failure::invalid(format!("{what} is not valid UTF-8 at byte {}", e.valid_up_to()))
        })
    }

    fn borrowed(text: &str) -> Str {
        Str { data: text.as_ptr(), len: text.len() }
    }
}

unsafe fn put_bytes(out: *mut Buffer, bytes: Vec<u8>) {
    if !out.is_null() {
        let mut bytes = ManuallyDrop::new(bytes);
        *out = Buffer { data: bytes.as_mut_ptr(), len: bytes.len(), capacity: bytes.capacity() };
    }
}

/// What the last panic said; it may have been on a thread of crate::stack.
static PANIC: Mutex<String> = Mutex::new(String::new());

fn panic_text() -> MutexGuard<'static, String> {
    PANIC.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on a panic's own words are kept for the sentence, instead of being printed.
fn keep_panics_text() {
    std::panic::set_hook(Box::new(|info| {
        let text = info.to_string().replace('\n', " ");
        *panic_text() = text;
    }));
}

/// Runs an entry point: an error or a panic becomes a code and a sentence.
unsafe fn entry(error: *mut Buffer, body: impl FnOnce() -> Result<()>) -> i32 {
    static HOOK: Once = Once::new();
    HOOK.call_once(keep_panics_text);
    let failure = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return 0,
        Ok(Err(failure)) => failure,
        Err(_) => {
            let text = panic_text().clone();
            // The crate's way to say that a pattern gave up on a text (a run of ten million spaces).
            if text.contains("Regex search error") {
                Failure::invalid(
                    "the text cannot be tokenized: a run of one kind of character in it is too \
                     long for the tokenizer's pattern",
                )
            } else {
                Failure::internal(format!("bug in the text library: {text}"))
            }
        }
    };
    put_bytes(error, failure.message.into_bytes());
    failure.code as i32
}

/// The same for what cannot fail: a panic gives the default.
fn quiet<T: Default>(body: impl FnOnce() -> T) -> T {
    let mut out = T::default();
    let target = &mut out;
    unsafe {
        entry(std::ptr::null_mut(), || {
            *target = body();
            Ok(())
        });
    }
    out
}

#[no_mangle]
pub unsafe extern "C" fn weir_text_buffer_free(buffer: *mut Buffer) {
    if let Some(b) = buffer.as_mut() {
        if !b.data.is_null() {
            drop(Vec::from_raw_parts(b.data, b.len, b.capacity));
        }
        *b = Buffer { data: std::ptr::null_mut(), len: 0, capacity: 0 };
    }
}

#[no_mangle]
pub unsafe extern "C" fn weir_text_ids_free(ids: *mut Ids) {
    if let Some(v) = ids.as_mut() {
        if !v.data.is_null() {
            drop(Vec::from_raw_parts(v.data, v.len, v.capacity));
        }
        *v = Ids { data: std::ptr::null_mut(), len: 0, capacity: 0 };
    }
}

pub type TokenizerHandle = Arc<LoadedTokenizer>;

#[no_mangle]
pub unsafe extern "C" fn weir_text_tokenizer_new(
    tokenizer_json: Str,
    config_json: Str,
    special_json: Str,
    out: *mut *mut TokenizerHandle,
    error: *mut Buffer,
) -> i32 {
    entry(error, || {
        let loaded = LoadedTokenizer::new(
            tokenizer_json.bytes(),
            config_json.bytes(),
            special_json.bytes(),
        )?;
        *out = Box::into_raw(Box::new(Arc::new(loaded)));
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn weir_text_tokenizer_free(tokenizer: *mut TokenizerHandle) {
    if !tokenizer.is_null() {
        quiet(|| drop(Box::from_raw(tokenizer)));
    }
}

#[no_mangle]
pub unsafe extern "C" fn weir_text_encode(
    tokenizer: *const TokenizerHandle,
    text: Str,
    add_special: i32,
    parse_special: i32,
    out: *mut Ids,
    error: *mut Buffer,
) -> i32 {
    entry(error, || {
        let text = text.text("the text")?;
        let ids = (*tokenizer).encode(text, add_special != 0, parse_special != 0)?;
        let mut ids = ManuallyDrop::new(ids);
        *out = Ids { data: ids.as_mut_ptr(), len: ids.len(), capacity: ids.capacity() };
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn weir_text_decode(
    tokenizer: *const TokenizerHandle,
    ids: *const u32,
    num_ids: usize,
    skip_special: i32,
    out: *mut Buffer,
    error: *mut Buffer,
) -> i32 {
    entry(error, || {
        let ids = if num_ids == 0 { &[][..] } else { std::slice::from_raw_parts(ids, num_ids) };
        let text = (*tokenizer).decode(ids, skip_special != 0)?;
        put_bytes(out, text.into_bytes());
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn weir_text_vocab_size(tokenizer: *const TokenizerHandle) -> u32 {
    (*tokenizer).vocab_size()
}

#[no_mangle]
pub unsafe extern "C" fn weir_text_id_to_token(
    tokenizer: *const TokenizerHandle,
    id: u32,
    out: *mut Buffer,
) -> i32 {
    let token = quiet(|| (*tokenizer).id_to_token(id));
    token.map(|t| put_bytes(out, t.into_bytes())).is_some() as i32
}

#[no_mangle]
pub unsafe extern "C" fn weir_text_id_to_bytes(
    tokenizer: *const TokenizerHandle,
    id: u32,
    out: *mut Buffer,
) -> i32 {
    let bytes = quiet(|| (*tokenizer).id_to_bytes(id));
    bytes.map(|b| put_bytes(out, b)).is_some() as i32
}

#[no_mangle]
pub unsafe extern "C" fn weir_text_token_to_id(
    tokenizer: *const TokenizerHandle,
    token: Str,
    out: *mut u32,
) -> i32 {
    let id = quiet(|| (*tokenizer).token_to_id(token.text("").ok()?));
    id.map(|id| *out = id).is_some() as i32
}

#[no_mangle]
pub unsafe extern "C" fn weir_text_added_token(
    tokenizer: *const TokenizerHandle,
    index: usize,
    id: *mut u32,
    content: *mut Str,
    special: *mut i32,
) -> i32 {
    let Some(token) = (*tokenizer).added(index) else { return 0 };
    *id = token.id;
    *content = Str::borrowed(&token.content);
    *special = token.special as i32;
    1
}

#[no_mangle]
pub unsafe extern "C" fn weir_text_named_token(
    tokenizer: *const TokenizerHandle,
    index: usize,
    name: *mut Str,
    content: *mut Str,
) -> i32 {
    let Some((token_name, token)) = (*tokenizer).named(index) else { return 0 };
    *name = Str::borrowed(token_name);
    *content = Str::borrowed(token);
    1
}

#[no_mangle]
pub unsafe extern "C" fn weir_text_stream_new(
    tokenizer: *const TokenizerHandle,
    skip_special: i32,
) -> *mut Stream {
    Box::into_raw(Box::new(Stream::new((*tokenizer).clone(), skip_special != 0)))
}

#[no_mangle]
pub unsafe extern "C" fn weir_text_stream_free(stream: *mut Stream) {
    if !stream.is_null() {
        quiet(|| drop(Box::from_raw(stream)));
    }
}

#[no_mangle]
pub unsafe extern "C" fn weir_text_stream_push(
    stream: *mut Stream,
    id: u32,
    out: *mut Buffer,
    error: *mut Buffer,
) -> i32 {
    entry(error, || {
        put_bytes(out, (*stream).push(id)?.into_bytes());
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn weir_text_stream_flush(
    stream: *mut Stream,
    out: *mut Buffer,
    error: *mut Buffer,
) -> i32 {
    entry(error, || {
        put_bytes(out, (*stream).flush()?.into_bytes());
        Ok(())
    })
}

#[no_mangle]
pub extern "C" fn weir_text_templates_new() -> *mut Templates {
    Box::into_raw(Box::new(Templates::new()))
}

#[no_mangle]
pub unsafe extern "C" fn weir_text_templates_free(templates: *mut Templates) {
    if !templates.is_null() {
        quiet(|| drop(Box::from_raw(templates)));
    }
}

#[no_mangle]
pub unsafe extern "C" fn weir_text_templates_add(
    templates: *mut Templates,
    name: Str,
    source: Str,
    error: *mut Buffer,
) -> i32 {
    entry(error, || {
        let name = name.text("the template's name")?;
        (*templates).add(name, source.text("the chat template")?)
    })
}

#[no_mangle]
pub unsafe extern "C" fn weir_text_templates_add_json(
    templates: *mut Templates,
    json: Str,
    error: *mut Buffer,
) -> i32 {
    entry(error, || (*templates).add_json(json.bytes()))
}

#[no_mangle]
pub unsafe extern "C" fn weir_text_templates_set_variable(
    templates: *mut Templates,
    name: Str,
    value: Str,
    error: *mut Buffer,
) -> i32 {
    entry(error, || {
        let name = name.text("the variable's name")?;
        (*templates).set_variable(name, value.text("the variable's value")?);
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn weir_text_templates_get(
    templates: *const Templates,
    index: usize,
    name: *mut Str,
    source: *mut Str,
) -> i32 {
    let Some((template_name, text)) = (*templates).get(index) else { return 0 };
    *name = Str::borrowed(template_name);
    *source = Str::borrowed(text);
    1
}

#[repr(C)]
pub struct ChatArgs {
    template_name: Str,
    messages_json: Str,
    tools_json: Str,
    documents_json: Str,
    kwargs_json: Str,
    add_generation_prompt: i32,
    continue_final_message: i32,
    now_unix_s: i64,
}

#[no_mangle]
pub unsafe extern "C" fn weir_text_templates_render(
    templates: *const Templates,
    chat: *const ChatArgs,
    out: *mut Buffer,
    error: *mut Buffer,
) -> i32 {
    entry(error, || {
        let chat = &*chat;
        let text = (*templates).render(&Chat {
            template_name: chat.template_name.text("the template's name")?,
            messages_json: chat.messages_json.bytes(),
            tools_json: chat.tools_json.bytes(),
            documents_json: chat.documents_json.bytes(),
            kwargs_json: chat.kwargs_json.bytes(),
            add_generation_prompt: chat.add_generation_prompt != 0,
            continue_final_message: chat.continue_final_message != 0,
            now_unix_s: chat.now_unix_s,
        })?;
        put_bytes(out, text.into_bytes());
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn weir_text_vocabulary_new(
    tokenizer: *const TokenizerHandle,
    ends: *const u32,
    num_ends: usize,
    out: *mut *mut Vocabulary,
    error: *mut Buffer,
) -> i32 {
    entry(error, || {
        let ends = if num_ends == 0 { &[][..] } else { std::slice::from_raw_parts(ends, num_ends) };
        let vocabulary = Vocabulary::new((*tokenizer).clone(), ends)?;
        // The grammar crate has put a hook of its own in front, which takes a second for a backtrace.
        keep_panics_text();
        *out = Box::into_raw(Box::new(vocabulary));
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn weir_text_vocabulary_free(vocabulary: *mut Vocabulary) {
    if !vocabulary.is_null() {
        quiet(|| drop(Box::from_raw(vocabulary)));
    }
}

#[no_mangle]
pub unsafe extern "C" fn weir_text_grammar_new(
    vocabulary: *const Vocabulary,
    kind: i32,
    source: Str,
    frame: Str,
    out: *mut *mut Grammar,
    error: *mut Buffer,
) -> i32 {
    entry(error, || {
        let kind = match kind {
            0 => Kind::Lark,
            1 => Kind::JsonSchema,
            2 => Kind::Regex,
            3 => Kind::Choice,
            other => return Err(Failure::internal(format!("no kind of grammar: {other}"))),
        };
        let (source, frame) = (source.text("the grammar")?, frame.text("the grammar's frame")?);
        let grammar = (*vocabulary).compile(kind, source, frame)?;
        *out = Box::into_raw(Box::new(grammar));
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn weir_text_grammar_free(grammar: *mut Grammar) {
    if !grammar.is_null() {
        quiet(|| drop(Box::from_raw(grammar)));
    }
}

#[no_mangle]
pub unsafe extern "C" fn weir_text_matcher_new(
    grammar: *const Grammar,
    out: *mut *mut Matcher,
    error: *mut Buffer,
) -> i32 {
    entry(error, || {
        *out = Box::into_raw(Box::new((*grammar).matcher()));
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn weir_text_matcher_free(matcher: *mut Matcher) {
    if !matcher.is_null() {
        quiet(|| drop(Box::from_raw(matcher)));
    }
}

#[no_mangle]
pub unsafe extern "C" fn weir_text_matcher_accept(
    matcher: *mut Matcher,
    id: u32,
    error: *mut Buffer,
) -> i32 {
    entry(error, || (*matcher).accept(id))
}

#[no_mangle]
pub unsafe extern "C" fn weir_text_matcher_mask(
    matcher: *mut Matcher,
    mask: *mut u32,
    num_words: usize,
    state: *mut i32,
    error: *mut Buffer,
) -> i32 {
    entry(error, || {
        let mask = if num_words == 0 {
            &mut [][..]
        } else {
            std::slice::from_raw_parts_mut(mask, num_words)
        };
        *state = (*matcher).fill_mask(mask)? as i32;
        Ok(())
    })
}
