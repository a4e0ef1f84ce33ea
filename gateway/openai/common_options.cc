#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "gateway/openai/request_parts.h"

namespace weir::gateway {
namespace {

void ReadLogitBias(Fields* fields, v1::SamplingOptions* sampling) {
  const Json* bias = fields->Object("logit_bias");
  if (bias == nullptr) return;
  for (const auto& [token, value] : bias->get_ref<const Json::object_t&>()) {
    const std::string name = absl::StrCat("logit_bias[", token.substr(0, 20), "]");
    int32_t id = 0;
    if (!absl::SimpleAtoi(token, &id)) {
      fields->Problem(name, "must be named by a token id");
    } else if (!value.is_number()) {
      fields->Problem(name, absl::StrCat("must be a number, is ", Kind(value)));
    } else if (const double number = value.get<double>(); number < -100 || number > 100) {
      fields->Problem(name, "must be between -100 and 100");
    } else {
      (*sampling->mutable_logit_bias())[id] = static_cast<float>(number);
    }
  }
}

void ReadSampling(Fields* fields, v1::SamplingOptions* sampling) {
  if (const auto value = fields->Number("temperature")) sampling->set_temperature(*value);
  if (const auto value = fields->Number("top_p")) sampling->set_top_p(*value);
  if (const auto value = fields->Number("min_p")) sampling->set_min_p(*value);
  if (const auto value = fields->Number("presence_penalty")) {
    sampling->set_presence_penalty(*value);
  }
  if (const auto value = fields->Number("frequency_penalty")) {
    sampling->set_frequency_penalty(*value);
  }
  if (const auto value = fields->Number("repetition_penalty")) {
    sampling->set_repetition_penalty(*value);
  }
  // -1 is how some clients say "off".
  if (const auto value = fields->Int("top_k", -1)) {
    sampling->set_top_k(*value == -1 ? 0 : static_cast<int32_t>(*value));
  }
  if (const auto value = fields->Int("seed", INT64_MIN, INT64_MAX)) {
    sampling->set_seed(static_cast<uint64_t>(*value));
  }
  ReadLogitBias(fields, sampling);
}

void ReadStop(Fields* fields, v1::StoppingOptions* stopping) {
  const Json* stop = fields->Take("stop");
  if (stop == nullptr) return;
  if (stop->is_string()) {
    stopping->add_stop_strings(stop->get_ref<const std::string&>());
    return;
  }
  if (!stop->is_array()) {
    fields->Problem("stop", absl::StrCat("must be a string or an array, is ", Kind(*stop)));
    return;
  }
  for (size_t i = 0; i < stop->size(); ++i) {
    const Json& entry = (*stop)[i];
    if (entry.is_string()) {
      stopping->add_stop_strings(entry.get_ref<const std::string&>());
    } else {
      fields->Problem(absl::StrCat("stop[", i, "]"),
                      absl::StrCat("must be a string, is ", Kind(entry)));
    }
  }
}

void ReadStopping(Fields* fields, v1::StoppingOptions* stopping) {
  ReadStop(fields, stopping);
  if (const auto value = fields->Int("min_tokens")) {
    stopping->set_min_tokens(static_cast<int32_t>(*value));
  }
  if (const auto value = fields->Bool("ignore_eos")) stopping->set_ignore_eos(*value);
  if (const auto value = fields->Bool("include_stop_str_in_output")) {
    stopping->set_include_stop(*value);
  }
  const Json* ids = fields->Array("stop_token_ids");
  for (size_t i = 0; ids != nullptr && i < ids->size(); ++i) {
    const Json& id = (*ids)[i];
    if (id.is_number_integer() && id.get<int64_t>() >= 0 && id.get<int64_t>() <= INT32_MAX) {
      stopping->add_stop_token_ids(id.get<int32_t>());
    } else {
      fields->Problem(absl::StrCat("stop_token_ids[", i, "]"), "must be a token id");
    }
  }
}

void ReadStreaming(Fields* fields, Call* call) {
  call->stream = fields->Bool("stream").value_or(false);
  const Json* given = fields->Object("stream_options");
  if (given == nullptr) return;
  if (!call->stream) {
    fields->Problem("stream_options", "is only allowed when stream is true");
    return;
  }
  Fields options(*given, "stream_options", fields->problems());
  call->include_usage = options.Bool("include_usage").value_or(false);
  options.Bool("include_obfuscation");  // padding against listeners who count bytes: never added
  options.RefuseUnknown();
}

// What changes nothing here but is the API's: checked for its type.
void ReadHints(Fields* fields, Call* call) {
  for (const char* name : {"user", "safety_identifier", "prompt_cache_key"}) fields->String(name);
  fields->Only("store", false, "must be false: answers are not stored");
  if (const std::string* tier = fields->String("service_tier")) {
    if (*tier == "auto" || *tier == "default") {
      call->service_tier = "default";
    } else {
      fields->Problem("service_tier", "must be \"auto\" or \"default\": there is one tier");
    }
  }
  const Json* metadata = fields->Object("metadata");
  if (metadata == nullptr) return;
  for (const auto& [name, value] : metadata->get_ref<const Json::object_t&>()) {
    if (!value.is_string()) {
      fields->Problem(absl::StrCat("metadata.", name.substr(0, 64)), "must be a string");
    }
  }
}

}  // namespace

std::optional<ApiError> CheckModel(Fields* fields, const ModelFacts& facts) {
  const std::string* model = fields->String("model");
  if (model == nullptr || model->empty() || *model == facts.id) return std::nullopt;
  return UnknownModel(model->substr(0, 200), facts.id);
}

void ReadCommon(Fields* fields, const ModelFacts& facts, Call* call, v1::GenerateRequest* request) {
  ReadSampling(fields, request->mutable_sampling());
  ReadStopping(fields, request->mutable_stopping());
  ReadStreaming(fields, call);
  ReadHints(fields, call);
  // Not left to the server: an answer has room for all its choices from the start.
  if (const auto value = fields->Int("n", 1, std::max(1, facts.limits.max_choices()))) {
    call->n = static_cast<int32_t>(*value);
    request->set_n(call->n);
  }
  if (const auto value = fields->Int("priority")) {
    request->set_priority(static_cast<int32_t>(*value));
  }
  v1::OutputOptions* output = request->mutable_output();
  output->set_text(true);
  call->return_token_ids = fields->Bool("return_token_ids").value_or(false);
  output->set_token_ids(call->return_token_ids);
  if (const auto value = fields->Bool("skip_special_tokens")) {
    output->set_skip_special_tokens(*value);
  }
  if (const auto value = fields->Int("prompt_logprobs", 0)) {
    if (call->stream) fields->Problem("prompt_logprobs", "is not told in a stream");
    output->set_prompt_logprobs(static_cast<int32_t>(*value));
    call->prompt_logprobs = true;
  }
}

}  // namespace weir::gateway
