#include "text/chat_template.h"

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "core/files.h"
#include "core/status.h"
#include "text/rust_handles.h"
#include "text/tokenizer.h"

namespace weir::text {
namespace {

constexpr size_t kMaxTemplateBytes = size_t{4} << 20;
constexpr size_t kMaxConfigBytes = size_t{64} << 20;

}  // namespace

struct ChatTemplate::Handle {
  Handle() : pointer(weir_text_templates_new()) {}
  ~Handle() { weir_text_templates_free(pointer); }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;

  weir_text_templates* pointer;
};

ChatTemplate::ChatTemplate(std::unique_ptr<Handle> handle) : handle_(std::move(handle)) {}
ChatTemplate::~ChatTemplate() = default;
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;

absl::StatusOr<ChatTemplate> ChatTemplate::Load(const std::string& model_dir,
                                                const Tokenizer& tokenizer) {
  ChatTemplate out(std::make_unique<Handle>());
  RETURN_IF_ERROR(out.AddFromFolder(model_dir));
  if (out.names().empty()) {
    return absl::NotFoundError(
        absl::StrCat(model_dir,
                     " has no chat template (chat_template.jinja, chat_template.json, or "
                     "\"chat_template\" in tokenizer_config.json)"));
  }
  RETURN_IF_ERROR(out.SetVariables(tokenizer));
  return out;
}

absl::StatusOr<ChatTemplate> ChatTemplate::FromSource(std::string_view source,
                                                      const Tokenizer* tokenizer) {
  ChatTemplate out(std::make_unique<Handle>());
  RETURN_IF_ERROR(out.Add("default", source, "chat template"));
  if (tokenizer != nullptr) RETURN_IF_ERROR(out.SetVariables(*tokenizer));
  return out;
}

absl::Status ChatTemplate::Add(std::string_view name, std::string_view source,
                               std::string_view file) {
  RustBuffer error;
  return ToStatus(
      weir_text_templates_add(handle_->pointer, Borrow(name), Borrow(source), error.get()), error,
      file);
}

absl::Status ChatTemplate::AddJson(std::string_view json, std::string_view file) {
  RustBuffer error;
  return ToStatus(weir_text_templates_add_json(handle_->pointer, Borrow(json), error.get()), error,
                  file);
}

absl::Status ChatTemplate::SetVariables(const Tokenizer& tokenizer) {
  for (const NamedToken& token : tokenizer.named_tokens()) {
    RustBuffer error;
    RETURN_IF_ERROR(ToStatus(weir_text_templates_set_variable(handle_->pointer, Borrow(token.name),
                                                              Borrow(token.content), error.get()),
                             error));
  }
  return absl::OkStatus();
}

absl::Status ChatTemplate::AddFromFolder(const std::string& model_dir) {
  namespace fs = std::filesystem;
  const auto path = [&](const char* name) { return absl::StrCat(model_dir, "/", name); };
  std::error_code error;
  std::vector<fs::path> additional;
  for (fs::directory_iterator it(path("additional_chat_templates"), error), end;
       !error && it != end; it.increment(error)) {
    if (it->path().extension() == ".jinja") additional.push_back(it->path());
  }
  std::sort(additional.begin(), additional.end());
  const bool has_main = fs::exists(path("chat_template.jinja"), error);
  if (has_main || !additional.empty()) {
    if (has_main) {
      ASSIGN_OR_RETURN(const std::string source,
                       ReadFile(path("chat_template.jinja"), kMaxTemplateBytes));
      RETURN_IF_ERROR(Add("default", source, path("chat_template.jinja")));
    }
    for (const fs::path& file : additional) {
      ASSIGN_OR_RETURN(const std::string source, ReadFile(file.string(), kMaxTemplateBytes));
      RETURN_IF_ERROR(Add(file.stem().string(), source, file.string()));
    }
    return absl::OkStatus();
  }
  for (const char* name : {"chat_template.json", "tokenizer_config.json"}) {
    ASSIGN_OR_RETURN(const std::string json, ReadFileIfPresent(path(name), kMaxConfigBytes));
    if (!json.empty()) RETURN_IF_ERROR(AddJson(json, path(name)));
    if (!names().empty()) return absl::OkStatus();
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ChatTemplate::Render(const ChatRequest& request) const {
  const absl::Time now = request.now.value_or(absl::Now());
  const weir_text_chat chat = {
      .template_name = Borrow(request.template_name),
      .messages_json = Borrow(request.messages_json),
      .tools_json = Borrow(request.tools_json),
      .documents_json = Borrow(request.documents_json),
      .kwargs_json = Borrow(request.kwargs_json),
      .add_generation_prompt = request.add_generation_prompt,
      .continue_final_message = request.continue_final_message,
      .now_unix_s = absl::ToUnixSeconds(now),
  };
  RustBuffer text;
  RustBuffer error;
  RETURN_IF_ERROR(ToStatus(
      weir_text_templates_render(handle_->pointer, &chat, text.get(), error.get()), error));
  return std::string(text.view());
}

std::vector<std::string> ChatTemplate::names() const {
  std::vector<std::string> out;
  weir_text_string name = {nullptr, 0};
  weir_text_string source = {nullptr, 0};
  for (size_t i = 0; weir_text_templates_get(handle_->pointer, i, &name, &source) != 0; ++i) {
    out.emplace_back(View(name));
  }
  return out;
}

std::string_view ChatTemplate::source(std::string_view wanted) const {
  weir_text_string name = {nullptr, 0};
  weir_text_string source = {nullptr, 0};
  for (size_t i = 0; weir_text_templates_get(handle_->pointer, i, &name, &source) != 0; ++i) {
    if (View(name) == wanted) return View(source);
  }
  return {};
}

}  // namespace weir::text
