#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gateway/openai/request_parts.h"

namespace weir::gateway {
namespace {

// Takes care that one of the ways is used.
class ConstraintReader {
 public:
  ConstraintReader(Call* call, v1::GenerateRequest* request) : call_(call), request_(request) {}

  // The constraint to fill in; nullptr: one is given already.
  v1::Constraint* Begin(Fields* fields, std::string_view name) {
    const std::string path = fields->Path(name);
    if (request_->has_constraint()) {
      fields->Problem(name, absl::StrCat("cannot be joined with ", call_->names.constraint));
      return nullptr;
    }
    call_->names.constraint = path;
    return request_->mutable_constraint();
  }

  void Json(Fields* fields, std::string_view name);
  void Text(Fields* fields, std::string_view name, bool regex);
  void Choice(Fields* fields, std::string_view name);
  void ResponseFormat(Fields* fields);
  void StructuredOutputs(Fields* fields);

 private:
  void JsonSchema(Fields* format);

  Call* const call_;
  v1::GenerateRequest* const request_;
};

// A schema, as an object or spelled out in a string; true and false are schemas too.
void ConstraintReader::Json(Fields* fields, std::string_view name) {
  const gateway::Json* schema = fields->Take(name);
  if (schema == nullptr) return;
  v1::Constraint* constraint = Begin(fields, name);
  if (constraint == nullptr) return;
  if (schema->is_string()) {
    constraint->set_json_schema(schema->get_ref<const std::string&>());
  } else if (schema->is_object() || schema->is_boolean()) {
    constraint->set_json_schema(schema->dump());
  } else {
    fields->Problem(name, absl::StrCat("must be a JSON schema, is ", Kind(*schema)));
  }
}

void ConstraintReader::Text(Fields* fields, std::string_view name, bool regex) {
  const std::string* text = fields->String(name);
  if (text == nullptr) return;
  v1::Constraint* constraint = Begin(fields, name);
  if (constraint == nullptr) return;
  if (regex) {
    constraint->set_regex(*text);
  } else {
    constraint->set_lark(*text);
  }
}

void ConstraintReader::Choice(Fields* fields, std::string_view name) {
  const gateway::Json* values = fields->Array(name);
  if (values == nullptr) return;
  v1::Constraint* constraint = Begin(fields, name);
  if (constraint == nullptr) return;
  constraint->mutable_choice();
  for (size_t i = 0; i < values->size(); ++i) {
    const gateway::Json& value = (*values)[i];
    if (value.is_string()) {
      constraint->mutable_choice()->add_values(value.get_ref<const std::string&>());
    } else {
      fields->Problem(absl::StrCat(std::string(name), "[", i, "]"),
                      absl::StrCat("must be a string, is ", Kind(value)));
    }
  }
}

void ConstraintReader::JsonSchema(Fields* format) {
  const gateway::Json* given = format->Object("json_schema");
  if (given == nullptr) {
    format->Problem("json_schema", "is required");
    return;
  }
  Fields schema(*given, "response_format.json_schema", format->problems());
  if (schema.String("name") == nullptr) schema.Problem("name", "is required");
  schema.String("description");
  schema.Bool("strict");  // it always is
  const gateway::Json* body = schema.Object("schema");
  schema.RefuseUnknown();
  v1::Constraint* constraint = Begin(&schema, "schema");
  if (constraint == nullptr) return;
  if (body == nullptr) {
    constraint->set_json_object(true);
  } else {
    constraint->set_json_schema(body->dump());
  }
}

void ConstraintReader::ResponseFormat(Fields* fields) {
  const gateway::Json* given = fields->Object("response_format");
  if (given == nullptr) return;
  Fields format(*given, "response_format", fields->problems());
  const std::string* type = format.String("type");
  if (type == nullptr) {
    format.Problem("type", "is required");
  } else if (*type == "json_object") {
    if (v1::Constraint* constraint = Begin(&format, "type")) constraint->set_json_object(true);
  } else if (*type == "json_schema") {
    JsonSchema(&format);
  } else if (*type != "text") {
    format.Problem("type", "must be text, json_object or json_schema");
  }
  format.RefuseUnknown();
}

void ConstraintReader::StructuredOutputs(Fields* fields) {
  const gateway::Json* given = fields->Object("structured_outputs");
  if (given == nullptr) return;
  Fields outputs(*given, "structured_outputs", fields->problems());
  Json(&outputs, "json");
  if (outputs.Bool("json_object").value_or(false)) {
    if (v1::Constraint* constraint = Begin(&outputs, "json_object")) {
      constraint->set_json_object(true);
    }
  }
  Text(&outputs, "regex", /*regex=*/true);
  Choice(&outputs, "choice");
  Text(&outputs, "grammar", /*regex=*/false);
  outputs.RefuseUnknown();
}

}  // namespace

void ReadConstraint(Fields* fields, Call* call, v1::GenerateRequest* request) {
  ConstraintReader reader(call, request);
  reader.ResponseFormat(fields);
  reader.StructuredOutputs(fields);
  reader.Json(fields, "guided_json");
  reader.Text(fields, "guided_regex", /*regex=*/true);
  reader.Choice(fields, "guided_choice");
  reader.Text(fields, "guided_grammar", /*regex=*/false);
}

}  // namespace weir::gateway
