#include "server/constraint.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/error_details.h"
#include "server/served_model.h"
#include "server/violations.h"
#include "text/tool_grammar.h"
#include "weir/v1/generate.pb.h"

namespace weir::server {
namespace {

// A choice on its way through the grammar.
class Following final : public scheduler::TokenConstraint {
 public:
  // `constraint` outlives it: the request holds both.
  Following(text::GrammarMatcher matcher, const GrammarConstraint* constraint)
      : matcher_(std::move(matcher)), constraint_(constraint) {}

  bool FillMask(absl::Span<uint32_t> mask) override {
    const absl::StatusOr<text::GrammarState> state = matcher_.FillMask(mask);
    if (!state.ok()) return Fail(state.status());
    // The grammar knows one end token; all of them are as good.
    const std::vector<int32_t>& end_ids = constraint_->end_ids();
    bool may_end = *state != text::GrammarState::kOpen;
    for (const int32_t id : end_ids) may_end = may_end || (Word(mask, id) >> (id % 32) & 1) != 0;
    for (const int32_t id : end_ids) {
      const uint32_t bit = uint32_t{1} << (id % 32);
      Word(mask, id) = may_end ? Word(mask, id) | bit : Word(mask, id) & ~bit;
    }
    return true;
  }

  bool Accept(int32_t token) override {
    const absl::Status status = matcher_.Accept(token);
    return status.ok() || Fail(status);
  }

 private:
  static uint32_t& Word(absl::Span<uint32_t> mask, int32_t id) {
    return mask[static_cast<size_t>(id / 32)];
  }

  bool Fail(const absl::Status& status) {
    constraint_->SetFailure({status.message().data(), status.message().size()});
    return false;
  }

  text::GrammarMatcher matcher_;
  const GrammarConstraint* const constraint_;
};

// What the compiler unrolls: arrays value by value, up to maxItems, and an object's fields, each
// with those that may follow. Without limits a schema of 100 bytes takes gigabytes and minutes.
constexpr double kMaxItems = 20'000;
constexpr size_t kMaxFields = 2'000;

// Adds up what a schema, or each schema within a grammar, asks the compiler to unroll.
class SchemaSize final : public nlohmann::json::json_sax_t {
 public:
  // Up to the end of the first JSON value.
  void Read(std::string_view text) {
    nlohmann::json::sax_parse(text.begin(), text.end(), this, nlohmann::json::input_format_t::json,
                              /*strict=*/false);
  }
  // Empty: it is small enough.
  std::string problem() const {
    if (items_ > kMaxItems) {
      return absl::StrCat("has arrays of ", items_, " values, minItems and maxItems of all added; ",
                          "at most ", kMaxItems, " are allowed");
    }
    if (!too_many_fields_) return "";
    return absl::StrCat("has an object of more than ", kMaxFields, " fields");
  }

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t value) override {
    return Number(static_cast<double>(value));
  }
  bool number_unsigned(number_unsigned_t value) override {
    return Number(static_cast<double>(value));
  }
  bool number_float(number_float_t value, const std::string&) override { return Number(value); }
  bool string(std::string&) override { return true; }
  bool binary(nlohmann::json::binary_t&) override { return true; }
  bool start_object(size_t) override {
    fields_.push_back(0);
    return true;
  }
  bool key(std::string& name) override {
    counts_ = name == "minItems" || name == "maxItems";
    too_many_fields_ = too_many_fields_ || ++fields_.back() > kMaxFields;
    return true;
  }
  bool end_object() override {
    fields_.pop_back();
    return true;
  }
  bool start_array(size_t) override {
    counts_ = false;
    return true;
  }
  bool end_array() override { return true; }
  bool parse_error(size_t, const std::string&, const nlohmann::json::exception&) override {
    return false;  // the compiler says what is wrong
  }

 private:
  using number_integer_t = nlohmann::json::number_integer_t;
  using number_unsigned_t = nlohmann::json::number_unsigned_t;
  using number_float_t = nlohmann::json::number_float_t;

  bool Number(double value) {
    if (std::exchange(counts_, false) && value > 0) items_ += value;
    return true;
  }

  double items_ = 0;
  bool counts_ = false;         // the value that comes is a number of items
  std::vector<size_t> fields_;  // of the objects that are open
  bool too_many_fields_ = false;
};

std::string SizeProblem(const text::GrammarSource& source) {
  SchemaSize size;
  if (source.kind == text::GrammarKind::kJsonSchema) size.Read(source.text);
  if (source.kind == text::GrammarKind::kLark) {
    constexpr std::string_view kSchema = "%json";
    const std::string_view text(source.text);
    for (size_t at = text.find(kSchema); at != std::string_view::npos;
         at = text.find(kSchema, at)) {
      at += kSchema.size();
      size.Read(text.substr(at));
    }
  }
  return size.problem();
}

text::GrammarSource Source(const v1::Constraint& constraint, std::string* field,
                           Violations* violations) {
  text::GrammarSource source;
  switch (constraint.kind_case()) {
    case v1::Constraint::kJsonObject:
      *field = "constraint.json_object";
      if (!constraint.json_object()) violations->Add(*field, "must be true where it is set");
      source = {text::GrammarKind::kJsonSchema, R"({"type":"object"})", ""};
      break;
    case v1::Constraint::kJsonSchema:
      *field = "constraint.json_schema";
      source = {text::GrammarKind::kJsonSchema, constraint.json_schema(), ""};
      break;
    case v1::Constraint::kRegex:
      *field = "constraint.regex";
      source = {text::GrammarKind::kRegex, constraint.regex(), ""};
      break;
    case v1::Constraint::kChoice: {
      *field = "constraint.choice";
      nlohmann::json values = nlohmann::json::array();
      if (constraint.choice().values_size() == 0) {
        violations->Add("constraint.choice.values", "at least one is required");
      }
      for (int i = 0; i < constraint.choice().values_size(); ++i) {
        const std::string& value = constraint.choice().values(i);
        if (value.empty()) {
          violations->Add(absl::StrCat("constraint.choice.values[", i, "]"), "is empty");
        }
        values.push_back(value);
      }
      source = {text::GrammarKind::kChoice, values.dump(), ""};
      break;
    }
    case v1::Constraint::kLark:
      *field = "constraint.lark";
      source = {text::GrammarKind::kLark, constraint.lark(), ""};
      break;
    case v1::Constraint::KIND_NOT_SET:
      *field = "constraint.kind";
      violations->Add(*field,
                      "is required: one of json_object, json_schema, regex, choice and lark");
      break;
  }
  return source;
}

}  // namespace

std::optional<ConstraintSpec> ToConstraintSpec(const v1::Constraint& constraint, int64_t max_bytes,
                                               Violations* violations) {
  ConstraintSpec spec;
  spec.source = Source(constraint, &spec.field, violations);
  const auto bytes = static_cast<int64_t>(spec.source.text.size());
  if (bytes == 0) {
    if (constraint.kind_case() != v1::Constraint::KIND_NOT_SET)
      violations->Add(spec.field, "is empty");
    return std::nullopt;
  }
  if (bytes > max_bytes) {
    violations->Add(spec.field,
                    absl::StrCat("has ", bytes, " bytes; at most ", max_bytes, " are allowed"));
    return std::nullopt;
  }
  if (const std::string problem = SizeProblem(spec.source); !problem.empty()) {
    violations->Add(spec.field, problem);
    return std::nullopt;
  }
  return spec;
}

absl::StatusOr<text::GrammarSource> ToGrammarSource(ConstraintSpec spec,
                                                    text::ReasoningStart reasoning,
                                                    const ServedModel& model, int64_t max_bytes) {
  if (spec.calls.empty()) {
    if (reasoning != text::ReasoningStart::kNone) {
      spec.source.frame = text::ReasoningThen("@answer", reasoning, model.tokenizer.get());
    }
    return std::move(spec.source);
  }
  text::ToolGrammarOptions options;
  options.style = model.answer_style;
  options.reasoning = reasoning;
  options.parallel = spec.parallel;
  const absl::StatusOr<std::string> lark =
      text::ToolCallGrammar(spec.calls, options, model.tokenizer.get());
  if (!lark.ok()) return InvalidField(spec.field, std::string(lark.status().message()));
  if (static_cast<int64_t>(lark->size()) > max_bytes) {
    return InvalidField(
        spec.field, absl::StrCat("make a grammar of ", lark->size(), " bytes; at most ", max_bytes,
                                 " are allowed where calls are forced"));
  }
  text::GrammarSource source{text::GrammarKind::kLark, *lark, ""};
  if (const std::string problem = SizeProblem(source); !problem.empty()) {
    return InvalidField(spec.field, problem);
  }
  return source;
}

std::unique_ptr<scheduler::TokenConstraint> GrammarConstraint::Start() const {
  absl::StatusOr<text::GrammarMatcher> matcher = text::GrammarMatcher::Start(*grammar_);
  if (!matcher.ok()) {
    SetFailure({matcher.status().message().data(), matcher.status().message().size()});
    return nullptr;
  }
  return std::make_unique<Following>(*std::move(matcher), this);
}

std::string GrammarConstraint::failure() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return failure_;
}

void GrammarConstraint::SetFailure(std::string_view why) const {
  std::lock_guard<std::mutex> lock(mutex_);
  failure_ = why;
}

}  // namespace weir::server
