// Chat messages to the text that a model was trained to read.
//
// Templates are Jinja, rendered as transformers' apply_chat_template renders them: blocks trimmed,
// raise_exception, strftime_now, tojson with its flags, loop controls, generation markers, Python's
// methods of strings, lists and dicts, None and True printed as Python prints them. `messages`,
// `tools`, `documents` and `add_generation_prompt` are always defined (None where absent); the
// model's named tokens (bos_token, ...) are variables.
//
// A rendering is bounded: 5 million template instructions and 64 MiB of text.
//
// Immutable after loading; Render may be called from any number of threads at once.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace weir::text {

class Tokenizer;

// All JSON is text; the order of keys is kept.
struct ChatRequest {
  std::string messages_json = {};   // array of objects, at least one
  std::string tools_json = {};      // array of tool schemas; empty or "null": none
  std::string documents_json = {};  // array of objects; empty or "null": none
  std::string kwargs_json = {};  // object of further variables (enable_thinking, ...); may be empty
  // Of several templates; empty: "tool_use" when there are tools and it exists, else "default".
  std::string template_name = {};
  // Ends with the header of the model's answer. Off when the last message is to be continued.
  bool add_generation_prompt = true;
  // The text ends inside the last message, so that the model goes on with it.
  bool continue_final_message = false;
  // What strftime_now() shows; absent: the machine's clock.
  std::optional<absl::Time> now = {};
};

class ChatTemplate {
 public:
  // Where a model folder keeps its templates, the first that exists: chat_template.jinja (with
  // further ones in additional_chat_templates/NAME.jinja), chat_template.json, or "chat_template"
  // in tokenizer_config.json (a string, or a list of named ones).
  // NotFound: none of them (the model cannot chat). InvalidArgument: a template does not compile;
  // the message names the file and the line.
  static absl::StatusOr<ChatTemplate> Load(const std::string& model_dir,
                                           const Tokenizer& tokenizer);

  // One template that is given as text. tokenizer may be null: no named tokens then.
  static absl::StatusOr<ChatTemplate> FromSource(std::string_view source,
                                                 const Tokenizer* tokenizer);

  ~ChatTemplate();
  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;

  // InvalidArgument: JSON that cannot be read or does not fit, or the template refuses the messages
  // (raise_exception; its own words are in the message) or fails on them. NotFound: no template of
  // that name. ResourceExhausted: the template ran past its bounds.
  absl::StatusOr<std::string> Render(const ChatRequest& request) const;

  // The names of the templates; one without a name is "default".
  std::vector<std::string> names() const;
  // The Jinja source; empty where there is no such template. The view lives as long as this object.
  std::string_view source(std::string_view name = "default") const;

 private:
  struct Handle;
  explicit ChatTemplate(std::unique_ptr<Handle> handle);
  absl::Status Add(std::string_view name, std::string_view source, std::string_view file);
  absl::Status AddJson(std::string_view json, std::string_view file);
  absl::Status AddFromFolder(const std::string& model_dir);
  absl::Status SetVariables(const Tokenizer& tokenizer);

  std::unique_ptr<Handle> handle_;
};

}  // namespace weir::text
