// Answers of any bytes, cut anywhere, in every style: the parts add up to the answer, arguments are
// JSON, and the cuts change nothing (tests/text/answer_parser_check.h).
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "tests/text/answer_parser_check.h"

using namespace weir::text;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto* tools = new std::shared_ptr<const std::vector<Tool>>(
      std::make_shared<const std::vector<Tool>>(ReadTools(std::vector<std::string>{
          R"({"name":"add","parameters":{"properties":{"a":{"type":"integer"},)"
          R"("note":{"type":"string"},"maybe":{"type":["boolean","null"]}}}})",
          R"({"name":"now"})"})));
  static const auto* styles = new std::vector<std::string>(ToolStyleNames());
  static const auto* words = new std::vector<std::string>(AnswerWords());
  if (size < 3) return 0;
  ParserSetup setup;
  setup.style.tools = *ToolStyleFromName((*styles)[data[0] % styles->size()]);
  setup.style.reasoning = (data[1] & 1) != 0 ? ReasoningStyle::kThink : ReasoningStyle::kNone;
  setup.in_reasoning = (data[1] & 2) != 0;
  setup.tools = *tools;
  std::string answer;
  for (size_t i = 3; i < size; ++i) {  // a byte is a character or a whole word
    const size_t word = data[i] & 0x7f;
    if (data[i] < 0x80 || word >= words->size()) {
      answer += static_cast<char>(word);
    } else {
      answer += (*words)[word];
    }
  }
  std::vector<std::string> pieces;
  uint32_t cut = data[2];
  for (size_t at = 0; at < answer.size();) {
    cut = cut * 1103515245 + 12345;
    const size_t n = std::min(answer.size() - at, size_t{1} + (cut >> 16) % 11);
    pieces.push_back(answer.substr(at, n));
    at += n;
  }
  const std::string problem = CheckAnswer(setup, answer, pieces);
  if (!problem.empty()) {
    std::fprintf(stderr, "%s\n", problem.c_str());
    std::abort();
  }
  return 0;
}
