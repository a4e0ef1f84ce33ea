#include "tests/server/test_model.h"

#include <nlohmann/json.hpp>

#include "core/check.h"
#include "text/chat_template.h"

namespace weir::testing {
namespace {

// The printable stand-in that byte-level tokenizers write for a byte: printable Latin-1 stands for
// itself, the others count on from U+0100.
std::string StandIn(int byte) {
  static const std::vector<int> points = [] {
    std::vector<int> out(256);
    int next = 0x100;
    for (int b = 0; b < 256; ++b) {
      const bool printable = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
      out[b] = printable ? b : next++;
    }
    return out;
  }();
  const int point = points[byte];
  if (point < 0x80) return std::string(1, static_cast<char>(point));
  return {static_cast<char>(0xc0 | point >> 6), static_cast<char>(0x80 | (point & 0x3f))};
}

constexpr char kTemplate[] =
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% if add_generation_prompt %}<|bot|>{% endif %}";

}  // namespace

std::string ByteTokenizerJson() {
  nlohmann::ordered_json json;
  json["version"] = "1.0";
  json["truncation"] = nullptr;
  json["padding"] = nullptr;
  const char* special[] = {"<|end|>", "<|user|>", "<|bot|>"};
  for (int i = 0; i < 3; ++i) {
    json["added_tokens"].push_back({{"id", kEndId + i},
                                    {"content", special[i]},
                                    {"single_word", false},
                                    {"lstrip", false},
                                    {"rstrip", false},
                                    {"normalized", false},
                                    {"special", true}});
  }
  json["normalizer"] = nullptr;
  json["pre_tokenizer"] = {{"type", "ByteLevel"},
                           {"add_prefix_space", false},
                           {"trim_offsets", true},
                           {"use_regex", true}};
  json["post_processor"] = nullptr;
  json["decoder"] = {{"type", "ByteLevel"},
                     {"add_prefix_space", true},
                     {"trim_offsets", true},
                     {"use_regex", true}};
  nlohmann::ordered_json vocab;
  for (int b = 0; b < 256; ++b) vocab[StandIn(b)] = b;
  for (int i = 0; i < 3; ++i) vocab[special[i]] = kEndId + i;
  json["model"] = {{"type", "BPE"},
                   {"dropout", nullptr},
                   {"unk_token", nullptr},
                   {"continuing_subword_prefix", nullptr},
                   {"end_of_word_suffix", nullptr},
                   {"fuse_unk", false},
                   {"byte_fallback", false},
                   {"vocab", vocab},
                   {"merges", nlohmann::ordered_json::array()}};
  return json.dump();
}

std::shared_ptr<const text::Tokenizer> ByteTokenizer() {
  static const auto* tokenizer = [] {
    auto made = text::Tokenizer::FromJson(ByteTokenizerJson());
    WEIR_CHECK(made.ok()) << made.status();
    return new std::shared_ptr<const text::Tokenizer>(*std::move(made));
  }();
  return *tokenizer;
}

server::ServedModel IdsOnlyModel() {
  server::ServedModel model;
  model.name = "test";
  model.family = "fake";
  model.compute_dtype = "f32";
  model.hidden_size = 64;
  model.num_layers = 2;
  model.layers_by_mixer = {{"gla", 2}};
  model.eos_ids = {kEndId};
  model.limits.vocab_size = kVocabSize;
  model.limits.max_position = 256;
  model.limits.max_step_tokens = 128;
  model.limits.max_step_sequences = 16;
  model.limits.max_in_flight = 2;
  model.limits.layout = {.slot_bytes = 1024, .page_bytes = 256, .page_tokens = 8};
  model.limits.cache = {.slots = 16, .pages = 512};
  return model;
}

server::ServedModel TestModel() {
  server::ServedModel model = IdsOnlyModel();
  model.tokenizer = ByteTokenizer();
  auto chat = text::ChatTemplate::FromSource(kTemplate, model.tokenizer.get());
  WEIR_CHECK(chat.ok()) << chat.status();
  model.chat_template = std::make_shared<const text::ChatTemplate>(*std::move(chat));
  return model;
}

}  // namespace weir::testing
