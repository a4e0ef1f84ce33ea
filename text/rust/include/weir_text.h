/* The C ABI of the Rust crate `weir_text`: tokenizers, incremental detokenising, chat templates,
 * grammars.
 *
 * Only the C++ files of text/ include this header; everybody else uses tokenizer.h,
 * detokenizer.h and chat_template.h.
 *
 * Rules that hold for every function here
 *  - Strings are pointer and length; no NUL ends them and they may contain NUL. Input strings are
 *    borrowed for the call. Text must be UTF-8; text that is not is refused with the byte offset.
 *  - A function that can fail returns a weir_text_code. On failure *error (where not NULL) holds a
 *    sentence and the other outputs are untouched. Free every filled buffer with
 *    weir_text_buffer_free / weir_text_ids_free; freeing a zeroed one does nothing.
 *  - A panic inside becomes WEIR_TEXT_INTERNAL. Nothing here aborts the process.
 *  - Tokenizers, finished template sets, vocabularies and grammars are immutable and may be used from
 *    any thread at once. A stream or a matcher belongs to one thread at a time.
 */
#ifndef WEIR_TEXT_RUST_INCLUDE_WEIR_TEXT_H_
#define WEIR_TEXT_RUST_INCLUDE_WEIR_TEXT_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
  WEIR_TEXT_OK = 0,
  WEIR_TEXT_INVALID_ARGUMENT = 1, /* what the caller passed or a file contains */
  WEIR_TEXT_NOT_FOUND = 2,        /* no template of that name */
  WEIR_TEXT_EXHAUSTED = 3,        /* a template ran past its limits */
  WEIR_TEXT_INTERNAL = 4,         /* a bug on this side of the boundary */
} weir_text_code;

typedef struct {
  const char* data; /* may be NULL when len is 0 */
  size_t len;
} weir_text_string;

typedef struct {
  char* data;
  size_t len;
  size_t capacity;
} weir_text_buffer;

typedef struct {
  uint32_t* data;
  size_t len;
  size_t capacity;
} weir_text_ids;

typedef struct weir_text_tokenizer weir_text_tokenizer;
typedef struct weir_text_stream weir_text_stream;
typedef struct weir_text_templates weir_text_templates;
typedef struct weir_text_vocabulary weir_text_vocabulary;
typedef struct weir_text_grammar weir_text_grammar;
typedef struct weir_text_matcher weir_text_matcher;

void weir_text_buffer_free(weir_text_buffer* buffer);
void weir_text_ids_free(weir_text_ids* ids);

/* ---- tokenizer ---------------------------------------------------------------------------- */

/* tokenizer_json: the bytes of tokenizer.json. config_json and special_json: the bytes of
 * tokenizer_config.json and special_tokens_map.json, or empty where the folder has none; they
 * name the special tokens (bos_token, ...) and may declare added tokens. */
int32_t weir_text_tokenizer_new(weir_text_string tokenizer_json, weir_text_string config_json,
                                weir_text_string special_json, weir_text_tokenizer** out,
                                weir_text_buffer* error);
void weir_text_tokenizer_free(weir_text_tokenizer* tokenizer);

/* add_special: let the post-processor add its tokens (bos and the like).
 * parse_special: special tokens written out in the text become their ids; else they are plain
 * text. Added tokens that are not special are recognised either way. */
int32_t weir_text_encode(const weir_text_tokenizer* tokenizer, weir_text_string text,
                         int32_t add_special, int32_t parse_special, weir_text_ids* out,
                         weir_text_buffer* error);

/* Exactly the concatenation of what a stream gives for the same ids. Ids without a token give
 * nothing. */
int32_t weir_text_decode(const weir_text_tokenizer* tokenizer, const uint32_t* ids, size_t num_ids,
                         int32_t skip_special, weir_text_buffer* out, weir_text_buffer* error);

/* One more than the largest id. Ids below it may still have no token (holes). */
uint32_t weir_text_vocab_size(const weir_text_tokenizer* tokenizer);

/* 1 and the token as the vocabulary writes it (e.g. "\xC4\xA0the"), or 0 where there is none. */
int32_t weir_text_id_to_token(const weir_text_tokenizer* tokenizer, uint32_t id,
                              weir_text_buffer* out);
/* 1 and the bytes that the token adds in the middle of a text (any bytes, not always UTF-8), or 0
 * where there is none. */
int32_t weir_text_id_to_bytes(const weir_text_tokenizer* tokenizer, uint32_t id,
                              weir_text_buffer* out);
/* 1 and the id of a token as the vocabulary writes it, or 0 where there is none. */
int32_t weir_text_token_to_id(const weir_text_tokenizer* tokenizer, weir_text_string token,
                              uint32_t* out);

/* Added tokens by increasing id. The string is borrowed from the tokenizer. 0 past the end. */
int32_t weir_text_added_token(const weir_text_tokenizer* tokenizer, size_t index, uint32_t* id,
                              weir_text_string* content, int32_t* special);
/* Named special tokens (bos_token, eos_token, ... and names that the model defines), in a fixed
 * order. Both strings are borrowed from the tokenizer. 0 past the end. */
int32_t weir_text_named_token(const weir_text_tokenizer* tokenizer, size_t index,
                              weir_text_string* name, weir_text_string* content);

/* ---- incremental detokenising --------------------------------------------------------------- */

/* The stream keeps the tokenizer alive. */
weir_text_stream* weir_text_stream_new(const weir_text_tokenizer* tokenizer, int32_t skip_special);
void weir_text_stream_free(weir_text_stream* stream);
/* Text that is finished by this id; always whole characters of valid UTF-8. */
int32_t weir_text_stream_push(weir_text_stream* stream, uint32_t id, weir_text_buffer* out,
                              weir_text_buffer* error);
/* The rest; bytes that never became a character come as U+FFFD. The stream starts anew. */
int32_t weir_text_stream_flush(weir_text_stream* stream, weir_text_buffer* out,
                               weir_text_buffer* error);

/* ---- chat templates ---------------------------------------------------------------------------
 */

weir_text_templates* weir_text_templates_new(void);
void weir_text_templates_free(weir_text_templates* templates);
/* Compiles a template under a name; a second one of the same name replaces the first. */
int32_t weir_text_templates_add(weir_text_templates* templates, weir_text_string name,
                                weir_text_string source, weir_text_buffer* error);
/* Takes "chat_template" out of a tokenizer_config.json or chat_template.json: a string, or a list
 * of {"name", "template"}. Adds nothing where the key is absent or null. */
int32_t weir_text_templates_add_json(weir_text_templates* templates, weir_text_string json,
                                     weir_text_buffer* error);
/* A variable that every rendering sees (bos_token, ...). */
int32_t weir_text_templates_set_variable(weir_text_templates* templates, weir_text_string name,
                                         weir_text_string value, weir_text_buffer* error);
/* Borrowed strings, in the order of adding. 0 past the end. */
int32_t weir_text_templates_get(const weir_text_templates* templates, size_t index,
                                weir_text_string* name, weir_text_string* source);

typedef struct {
  weir_text_string template_name;  /* empty: "tool_use" when there are tools, else "default" */
  weir_text_string messages_json;  /* an array of objects, at least one */
  weir_text_string tools_json;     /* an array, or empty / "null" for none */
  weir_text_string documents_json; /* an array of objects, or empty / "null" for none */
  weir_text_string kwargs_json;    /* an object with further variables, or empty / "null" */
  int32_t add_generation_prompt;
  int32_t continue_final_message;
  int64_t now_unix_s; /* what strftime_now() shows, in the time zone of the process */
} weir_text_chat;

int32_t weir_text_templates_render(const weir_text_templates* templates, const weir_text_chat* chat,
                                   weir_text_buffer* out, weir_text_buffer* error);

/* ---- grammars --------------------------------------------------------------------------------- */

/* The tokenizer's tokens, arranged for grammars. `ends`: the ids that end an answer, at least one in
 * the vocabulary; they are never part of its text. Takes a while (about a microsecond per token). */
int32_t weir_text_vocabulary_new(const weir_text_tokenizer* tokenizer, const uint32_t* ends,
                                 size_t num_ends, weir_text_vocabulary** out,
                                 weir_text_buffer* error);
void weir_text_vocabulary_free(weir_text_vocabulary* vocabulary);

typedef enum {
  WEIR_TEXT_GRAMMAR_LARK = 0,        /* its start rule is `start` */
  WEIR_TEXT_GRAMMAR_JSON_SCHEMA = 1, /* a JSON value that is valid under it */
  WEIR_TEXT_GRAMMAR_REGEX = 2,       /* the whole text matches */
  WEIR_TEXT_GRAMMAR_CHOICE = 3,      /* a JSON array of strings: one of them */
} weir_text_grammar_kind;

/* frame: empty, or the Lark text of what stands around the answer, in which @answer stands for it.
 * INVALID_ARGUMENT with the reason: it cannot be compiled, or only beyond the crate's limits. */
int32_t weir_text_grammar_new(const weir_text_vocabulary* vocabulary, int32_t kind,
                              weir_text_string source, weir_text_string frame,
                              weir_text_grammar** out, weir_text_buffer* error);
void weir_text_grammar_free(weir_text_grammar* grammar);

typedef enum {
  WEIR_TEXT_GRAMMAR_OPEN = 0,     /* the answer must go on */
  WEIR_TEXT_GRAMMAR_MAY_END = 1,  /* it may end here */
  WEIR_TEXT_GRAMMAR_COMPLETE = 2, /* nothing may follow */
} weir_text_grammar_state;

/* An answer at its beginning. Keeps what it needs of the grammar alive. */
int32_t weir_text_matcher_new(const weir_text_grammar* grammar, weir_text_matcher** out,
                              weir_text_buffer* error);
void weir_text_matcher_free(weir_text_matcher* matcher);
/* The answer goes on with `id`. After an error the matcher is of no more use. */
int32_t weir_text_matcher_accept(weir_text_matcher* matcher, uint32_t id, weir_text_buffer* error);
/* Bit id % 32 of mask[id / 32]: `id` may come next. Clear past the vocabulary. EXHAUSTED: finding out
 * takes more than the crate's limits. */
int32_t weir_text_matcher_mask(weir_text_matcher* matcher, uint32_t* mask, size_t num_words,
                               int32_t* state, weir_text_buffer* error);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* WEIR_TEXT_RUST_INCLUDE_WEIR_TEXT_H_ */
