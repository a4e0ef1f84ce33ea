// Grammars over real tokenizers: what a matcher allows is what the constraint means.
#include "text/grammar.h"

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/text/text_test_support.h"

namespace weir::text {
namespace {

using ::testing::HasSubstr;

constexpr int32_t kEnd = 1;  // <|end|> of weir-tiny

std::shared_ptr<const Tokenizer> TinyModelTokenizer() {
  static const auto tokenizer = LoadTokenizer(WEIR_SOURCE_DIR "/models/weir-tiny");
  return tokenizer;
}

GrammarCompiler& Compiler() {
  static auto* compiler =
      new GrammarCompiler(TinyModelTokenizer(), {kEnd, 0}, /*cache_entries=*/64, 1 << 20);
  return *compiler;
}

std::shared_ptr<const Grammar> Compile(GrammarKind kind, const std::string& text,
                                       const std::string& frame = "") {
  auto compiled = Compiler().Compile({kind, text, frame});
  EXPECT_TRUE(compiled.ok()) << compiled.status();
  return compiled.ok() ? compiled->grammar : nullptr;
}

std::string Refusal(GrammarKind kind, const std::string& text) {
  auto compiled = Compiler().Compile({kind, text, ""});
  EXPECT_EQ(compiled.status().code(), absl::StatusCode::kInvalidArgument) << text;
  return std::string(compiled.status().message());
}

std::vector<uint32_t> EmptyMask() {
  return std::vector<uint32_t>(static_cast<size_t>(TinyModelTokenizer()->vocab_size() + 31) / 32);
}

bool Has(const std::vector<uint32_t>& mask, int32_t id) {
  return (mask[static_cast<size_t>(id / 32)] >> (id % 32) & 1) != 0;
}

// Whether the grammar takes exactly this text, in the tokenizer's own tokens.
bool Takes(const Grammar& grammar, const std::string& text) {
  auto matcher = GrammarMatcher::Start(grammar);
  EXPECT_TRUE(matcher.ok()) << matcher.status();
  std::vector<uint32_t> mask = EmptyMask();
  const auto ids = TinyModelTokenizer()->Encode(text, false, false);
  for (const int32_t id : *ids) {
    const auto state = matcher->FillMask(absl::MakeSpan(mask));
    EXPECT_TRUE(state.ok()) << state.status();
    if (!Has(mask, id)) return false;
    EXPECT_TRUE(matcher->Accept(id).ok());
  }
  const auto state = matcher->FillMask(absl::MakeSpan(mask));
  EXPECT_TRUE(state.ok()) << state.status();
  return *state != GrammarState::kOpen;
}

// An answer drawn evenly from what is allowed; empty when it does not end in `most` tokens.
std::string Draw(const Grammar& grammar, uint64_t seed, int most) {
  std::mt19937_64 random(seed);
  auto matcher = *GrammarMatcher::Start(grammar);
  std::vector<uint32_t> mask = EmptyMask();
  std::vector<int32_t> ids;
  for (int i = 0; i < most; ++i) {
    const auto state = matcher.FillMask(absl::MakeSpan(mask));
    EXPECT_TRUE(state.ok()) << state.status();
    std::vector<int32_t> allowed;
    for (int32_t id = 0; id < TinyModelTokenizer()->vocab_size(); ++id) {
      if (id != kEnd && Has(mask, id)) allowed.push_back(id);
    }
    if (allowed.empty() || (*state == GrammarState::kMayEnd && random() % 4 == 0)) {
      EXPECT_NE(*state, GrammarState::kOpen);
      return *TinyModelTokenizer()->Decode(ids, false);
    }
    ids.push_back(allowed[random() % allowed.size()]);
    const absl::Status accepted = matcher.Accept(ids.back());
    EXPECT_TRUE(accepted.ok()) << accepted;
  }
  return "";
}

TEST(GrammarTest, AChoiceIsOneOfItsTexts) {
  const auto grammar = Compile(GrammarKind::kChoice, R"(["yes", "no", "n\"o\n/é"])");
  EXPECT_TRUE(Takes(*grammar, "yes"));
  EXPECT_TRUE(Takes(*grammar, "no"));
  EXPECT_TRUE(Takes(*grammar, "n\"o\n/é"));
  EXPECT_FALSE(Takes(*grammar, "n"));
  EXPECT_FALSE(Takes(*grammar, "nope"));
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const std::string text = Draw(*grammar, seed, 40);
    EXPECT_TRUE(text == "yes" || text == "no" || text == "n\"o\n/é") << text;
  }
}

TEST(GrammarTest, ARegexMatchesTheWholeText) {
  const auto grammar = Compile(GrammarKind::kRegex, "(19|20)[0-9]{2}/[a-c]+");
  EXPECT_TRUE(Takes(*grammar, "1999/abcab"));
  EXPECT_FALSE(Takes(*grammar, "1899/a"));
  EXPECT_FALSE(Takes(*grammar, "1999/"));
  EXPECT_FALSE(Takes(*grammar, "1999/ad"));
}

TEST(GrammarTest, ALarkGrammarMayRecurse) {
  const auto grammar = Compile(GrammarKind::kLark, R"lark(start: expr
expr: NUMBER | "(" expr OP expr ")"
OP: "+" | "*"
NUMBER: /[0-9]{1,3}/
)lark");
  EXPECT_TRUE(Takes(*grammar, "((1+22)*(3+4))"));
  EXPECT_FALSE(Takes(*grammar, "((1+22)*(3+4)"));
  EXPECT_FALSE(Takes(*grammar, "(1)"));
}

TEST(GrammarTest, ASchemaIsWrittenOnOneLine) {
  const auto grammar = Compile(GrammarKind::kJsonSchema, R"({
    "type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", null]}},
    "required": ["a", "b"], "additionalProperties": false})");
  EXPECT_TRUE(Takes(*grammar, R"({"a": -12, "b": null})"));
  EXPECT_TRUE(Takes(*grammar, R"({"a": 0, "b": "x"})"));
  EXPECT_FALSE(Takes(*grammar, R"({"a": 0, "b": "y"})"));
  EXPECT_FALSE(Takes(*grammar, R"({"a": 0})"));
  EXPECT_FALSE(Takes(*grammar, "{\n\"a\": 0, \"b\": \"x\"}"));
}

TEST(GrammarTest, WhateverIsDrawnIsValid) {
  const auto grammar = Compile(GrammarKind::kJsonSchema, R"({
    "$defs": {"tree": {"type": "object", "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 8},
        "kids": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2}},
      "required": ["name"], "additionalProperties": false}},
    "$ref": "#/$defs/tree"})");
  int whole = 0;
  for (uint64_t seed = 0; seed < 60; ++seed) {
    const std::string text = Draw(*grammar, seed, 300);
    if (text.empty()) continue;  // a tree too large for so few tokens
    ++whole;
    const auto value = nlohmann::json::parse(text, nullptr, false);
    ASSERT_TRUE(value.is_object()) << text;
    EXPECT_TRUE(value.at("name").is_string()) << text;
    EXPECT_LE(value.value("kids", nlohmann::json::array()).size(), 2u) << text;
  }
  EXPECT_GT(whole, 30);
}

TEST(GrammarTest, TokensWithoutTextAreNeverAllowed) {
  const auto grammar = Compile(GrammarKind::kRegex, R"((?s:.*))");
  auto matcher = *GrammarMatcher::Start(*grammar);
  std::vector<uint32_t> mask = EmptyMask();
  ASSERT_EQ(*matcher.FillMask(absl::MakeSpan(mask)), GrammarState::kMayEnd);
  for (const AddedToken& token : TinyModelTokenizer()->added_tokens()) {
    if (token.id == kEnd) continue;  // where it may end
    EXPECT_EQ(Has(mask, token.id), !token.special) << token.content;
  }
  EXPECT_TRUE(Has(mask, *TinyModelTokenizer()->TokenId("the")));
}

TEST(GrammarTest, AFrameStandsAroundTheAnswer) {
  const auto grammar = Compile(GrammarKind::kChoice, R"(["yes"])",
                               "start: \"<think>\" thought \"\\n\" @answer\n"
                               "thought[lazy]: /(?s:.*)<\\/think>/\n");
  EXPECT_TRUE(Takes(*grammar, "<think>no? maybe</think>\nyes"));
  EXPECT_FALSE(Takes(*grammar, "yes"));
  EXPECT_FALSE(Takes(*grammar, "<think>no</think>\nno"));
}

TEST(GrammarTest, WhatCannotBeCompiledIsRefusedWithTheReason) {
  EXPECT_THAT(Refusal(GrammarKind::kRegex, "[0-9"), HasSubstr("unclosed character class"));
  EXPECT_THAT(Refusal(GrammarKind::kLark, "start: \"a\" b"), HasSubstr("unknown name"));
  EXPECT_THAT(Refusal(GrammarKind::kJsonSchema, "{"), HasSubstr("no valid JSON"));
  EXPECT_THAT(Refusal(GrammarKind::kJsonSchema, "[]"), HasSubstr("must be a JSON object"));
  EXPECT_THAT(Refusal(GrammarKind::kJsonSchema, R"({"not": {"type": "string"}})"),
              HasSubstr("not"));
  EXPECT_THAT(Refusal(GrammarKind::kJsonSchema, R"({"$ref": "#/$defs/none"})"), HasSubstr("none"));
  EXPECT_THAT(Refusal(GrammarKind::kJsonSchema, R"({"$ref": "http://example.org/a.json"})"),
              HasSubstr("example.org"));
  EXPECT_THAT(Refusal(GrammarKind::kChoice, "[]"), HasSubstr("choice"));
}

// What a client may send to hang or to crash a server ends soon, one way or the other.
TEST(GrammarTest, HostileSourcesEnd) {
  std::string deep_schema, many_terminals = "start: T0\n", nested = "start: ";
  for (int i = 0; i < 5000; ++i) deep_schema += R"({"items":)";
  for (int i = 0; i < 5000; ++i) {
    many_terminals += "T" + std::to_string(i) + ": \"a\" T" + std::to_string(i + 1) + "\n";
  }
  many_terminals += "T5000: \"b\"\n";
  nested += std::string(20'000, '(') + "\"a\"" + std::string(20'000, ')');
  const std::pair<GrammarKind, std::string> sources[] = {
      {GrammarKind::kJsonSchema, deep_schema},
      {GrammarKind::kLark, many_terminals},
      {GrammarKind::kLark, nested},
      {GrammarKind::kRegex, "((((a{1,100}){1,100}){1,100}){1,100}){1,100}"},
      {GrammarKind::kRegex, "(a|b)*a(a|b){2000}"},
      {GrammarKind::kRegex, std::string(20'000, '(') + std::string(20'000, ')')},
      {GrammarKind::kLark, "start: start start | \"a\" |"},
      {GrammarKind::kJsonSchema, R"({"type": "array", "minItems": 300000, "maxItems": 400000})"},
      {GrammarKind::kJsonSchema, R"({"type": "string", "minLength": 100000000})"},
  };
  for (const auto& [kind, text] : sources) {
    auto compiled = Compiler().Compile({kind, text, ""});
    if (!compiled.ok()) {
      EXPECT_EQ(compiled.status().code(), absl::StatusCode::kInvalidArgument) << compiled.status();
      continue;
    }
    auto matcher = *GrammarMatcher::Start(*compiled->grammar);
    std::vector<uint32_t> mask = EmptyMask();
    for (int i = 0; i < 50; ++i) {
      const auto state = matcher.FillMask(absl::MakeSpan(mask));
      if (!state.ok()) break;  // beyond the limits: said, not suffered
      const auto word = std::find_if(mask.begin(), mask.end(), [](uint32_t w) { return w != 0; });
      if (word == mask.end()) break;
      const auto id = 32 * (word - mask.begin()) + __builtin_ctz(*word);
      if (id == kEnd || !matcher.Accept(static_cast<int32_t>(id)).ok()) break;
    }
  }
}

TEST(GrammarTest, TheCacheKeepsWhatWasUsedLast) {
  GrammarCompiler compiler(TinyModelTokenizer(), {kEnd}, /*cache_entries=*/2, 1 << 20);
  const auto cached = [&](const std::string& regex) {
    return compiler.Compile({GrammarKind::kRegex, regex, ""})->cached;
  };
  EXPECT_FALSE(cached("a"));
  EXPECT_FALSE(cached("b"));
  EXPECT_TRUE(cached("a"));
  EXPECT_FALSE(cached("c"));  // "b" goes
  EXPECT_TRUE(cached("a"));
  EXPECT_FALSE(cached("b"));
  EXPECT_EQ(compiler.cached(), 2u);
  EXPECT_FALSE(compiler.Compile({GrammarKind::kRegex, "[", ""}).ok());
  EXPECT_EQ(compiler.cached(), 2u);
}

TEST(GrammarTest, AModelWithoutEndTokensIsRefused) {
  GrammarCompiler compiler(TinyModelTokenizer(), {}, 2, 1 << 20);
  EXPECT_EQ(compiler.Compile({GrammarKind::kRegex, "a", ""}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace weir::text
