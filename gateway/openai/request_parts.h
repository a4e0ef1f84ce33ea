// The parts of a request that are read alike for several paths.
#pragma once

#include <optional>
#include <string>

#include "gateway/openai/call.h"
#include "gateway/openai/json.h"

namespace weir::gateway {

// `model`: 404 when it names another than the one served.
std::optional<ApiError> CheckModel(Fields* fields, const ModelFacts& facts);

// Sampling, stopping, streaming, n, priority and the extensions that both kinds of completions
// have. Into `call` and `request`.
void ReadCommon(Fields* fields, const ModelFacts& facts, Call* call, v1::GenerateRequest* request);

// `messages`: at least one.
void ReadMessages(Fields* fields, const ModelFacts& facts, v1::Chat* chat);
// tools; they go to the template as they were sent, but for what only OpenAI's servers read.
void ReadTools(Fields* fields, v1::Chat* chat);
// tool_choice and parallel_tool_calls. After ReadTools.
void ReadToolChoice(Fields* fields, v1::GenerateRequest* request);
// What else there is to say to the template: chat_template_kwargs, reasoning_effort,
// add_generation_prompt, continue_final_message.
void ReadTemplate(Fields* fields, const ModelFacts& facts, v1::Chat* chat);

// response_format and the extensions guided_... and structured_outputs, of which one may be given.
void ReadConstraint(Fields* fields, Call* call, v1::GenerateRequest* request);

}  // namespace weir::gateway
