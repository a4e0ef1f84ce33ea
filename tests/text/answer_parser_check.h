// What must hold for every answer, however it is cut; for the tests and the fuzzer.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "text/answer_parser.h"
#include "text/json_filter.h"

namespace weir::text {

struct ParserSetup {
  AnswerStyle style;
  std::shared_ptr<const std::vector<Tool>> tools;
  bool in_reasoning = false;
};

inline std::vector<AnswerEvent> ParseIn(const ParserSetup& setup,
                                        const std::vector<std::string>& pieces) {
  AnswerParser parser(setup.style, setup.tools, setup.in_reasoning);
  std::vector<AnswerEvent> joined;
  const auto join = [&joined](std::vector<AnswerEvent> events) {
    for (AnswerEvent& event : events) {
      if (!joined.empty() && joined.back().kind == event.kind && joined.back().call == event.call &&
          event.kind != AnswerEvent::Kind::kCallStart) {
        joined.back().text += event.text;
        joined.back().source_bytes += event.source_bytes;
      } else {
        joined.push_back(std::move(event));
      }
    }
  };
  for (const std::string& piece : pieces) {
    std::vector<AnswerEvent> events;
    parser.Feed(piece, &events);
    join(std::move(events));
  }
  std::vector<AnswerEvent> events;
  parser.Finish(&events);
  join(std::move(events));
  return joined;
}

// "R<...>T<...>C<name=id>A<...>"; markup, if wanted, as "M<bytes>".
inline std::string Render(const std::vector<AnswerEvent>& events, bool markup = false) {
  std::string out;
  for (const AnswerEvent& event : events) {
    switch (event.kind) {
      case AnswerEvent::Kind::kText:
        out += "T<" + event.text + ">";
        break;
      case AnswerEvent::Kind::kReasoning:
        out += "R<" + event.text + ">";
        break;
      case AnswerEvent::Kind::kCallStart:
        out += "C<" + event.text + (event.id.empty() ? "" : "=" + event.id) + ">";
        break;
      case AnswerEvent::Kind::kArguments:
        out += "A<" + event.text + ">";
        break;
      case AnswerEvent::Kind::kMarkup:
        if (markup) out += "M<" + std::to_string(event.source_bytes) + ">";
        break;
    }
  }
  return out;
}

// Everything that tells events apart.
inline std::string Fingerprint(const std::vector<AnswerEvent>& events) {
  std::string out = Render(events, /*markup=*/true);
  for (const AnswerEvent& event : events) {
    out += " " + std::to_string(event.call) + ":" + std::to_string(event.source_bytes);
  }
  return out;
}

// Empty, or what is wrong with the events of the whole answer.
inline std::string CheckEvents(const std::string& answer, const std::vector<AnswerEvent>& events) {
  size_t at = 0;
  int32_t calls = 0;
  bool answering = false;
  for (const AnswerEvent& event : events) {
    const bool plain =
        event.kind == AnswerEvent::Kind::kText || event.kind == AnswerEvent::Kind::kReasoning;
    if (plain && event.text != answer.substr(at, event.source_bytes)) return "text is changed";
    if (plain && event.text.empty()) return "an empty event";
    if (event.kind == AnswerEvent::Kind::kReasoning && answering) return "reasoning comes late";
    if (event.kind == AnswerEvent::Kind::kText) answering = true;
    if (event.kind == AnswerEvent::Kind::kCallStart) {
      if (event.call != calls++) return "calls are numbered wrongly";
      if (event.text.empty()) return "a call without a name";
    }
    if (event.kind == AnswerEvent::Kind::kArguments && event.call != calls - 1) {
      return "arguments of another call";
    }
    at += event.source_bytes;
  }
  if (at != answer.size()) return "the parts do not add up to the answer";
  return "";
}

// Arguments are a JSON object, or the beginning of one where a call broke off.
inline std::string CheckArguments(const std::vector<AnswerEvent>& events) {
  for (const AnswerEvent& event : events) {
    if (event.kind != AnswerEvent::Kind::kArguments) continue;
    JsonFilter filter;
    std::string same;
    JsonFilter::Result result = JsonFilter::Result::kMore;
    for (const char c : event.text) {
      if (result != JsonFilter::Result::kMore) return "arguments go on: " + event.text;
      result = filter.Push(c, &same);
    }
    if (result == JsonFilter::Result::kBad) return "no beginning of an object: " + event.text;
    if (result == JsonFilter::Result::kDone && !nlohmann::json::accept(event.text)) {
      return "invalid arguments: " + event.text;
    }
  }
  return "";
}

inline std::string CheckAnswer(const ParserSetup& setup, const std::string& answer,
                               const std::vector<std::string>& pieces) {
  const std::vector<AnswerEvent> whole = ParseIn(setup, {answer});
  std::string problem = CheckEvents(answer, whole);
  if (problem.empty()) problem = CheckArguments(whole);
  if (!problem.empty()) return problem + ": " + Fingerprint(whole);
  const std::string cut = Fingerprint(ParseIn(setup, pieces));
  if (cut != Fingerprint(whole)) return "cut: " + cut + " whole: " + Fingerprint(whole);
  return "";
}

// What answers are made of, in every style; for random ones.
inline std::vector<std::string> AnswerWords() {
  return {"<think>",
          "</think>",
          "<tool_call>",
          "</tool_call>",
          "<function=add>",
          "<function=x>",
          "<parameter=a>",
          "<parameter=note>",
          "</parameter>",
          "</function>",
          "{",
          "}",
          "[",
          "]",
          "{\"name\": \"add\", \"arguments\": ",
          "{\"name\": \"now\"",
          "\"arguments\"",
          "\"name\"",
          ":",
          ",",
          "; ",
          "\"",
          "\\",
          "\\u",
          "d83d",
          "dead",
          "12",
          "0.5e",
          "-",
          "true",
          "null",
          "\"id\": 3",
          "{\"a\": 1}",
          "\n",
          " ",
          "text",
          "\xc3\xa9",
          "add\n",
          "now",
          "<arg_key>a",
          "</arg_key>",
          "<arg_value>",
          "</arg_value>",
          "<|python_tag|>",
          "<|tool_call|>",
          "<TOOLCALL>",
          "</TOOLCALL>",
          "<tool_calls>",
          "</tool_calls>",
          "[TOOL_CALLS]",
          "<|tool_calls_section_begin|>",
          "<|tool_calls_section_end|>",
          "<|tool_call_begin|>functions.now:1",
          "<|tool_call_argument_begin|>",
          "<|tool_call_end|>",
          "<",
          "</",
          "<tool"};
}

}  // namespace weir::text
