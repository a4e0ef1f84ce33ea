//! Text <-> tokens for Weir: the `tokenizers`, `minijinja` and `llguidance` crates behind a small C
//! ABI.
//!
//! * [`tokenizer`]: one loaded `tokenizer.json` with its special tokens.
//! * [`decode`]: ids to text, one id at a time; whole decoding is the same thing run to the end.
//! * [`template`]: chat templates, rendered as Hugging Face's Python does it.
//! * [`python`]: what a template sees of Python: values, methods, filters, JSON.
//! * [`grammar`]: what an answer may be, as masks of its next token.
//! * [`stack`]: room for deep recursion.
//! * [`ffi`]: the C ABI (`include/weir_text.h`); the only `unsafe` beside one call of strftime.

mod decode;
mod failure;
mod ffi;
mod grammar;
mod python;
mod stack;
mod template;
mod tokenizer;
