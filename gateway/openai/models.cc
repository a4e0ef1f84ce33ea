#include "absl/strings/str_cat.h"
#include "gateway/openai/answer.h"
#include "gateway/openai/json_text.h"

namespace weir::gateway {

std::string ModelBody(const ModelFacts& facts) {
  std::string out = "{\"id\":";
  AppendJsonString(facts.id, &out);
  out.append(",\"object\":\"model\",\"created\":");
  AppendJsonInt(facts.created_s, &out);
  out.append(",\"owned_by\":\"weir\",\"max_model_len\":");
  AppendJsonInt(facts.model.max_position(), &out);
  out.push_back('}');
  return out;
}

std::string ModelListBody(const ModelFacts& facts) {
  return absl::StrCat("{\"object\":\"list\",\"data\":[", ModelBody(facts), "]}");
}

}  // namespace weir::gateway
