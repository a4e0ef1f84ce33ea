#include "text/tokenizer.h"

#include <filesystem>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/text/text_test_support.h"

namespace weir::text {
namespace {

using Json = nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

const Json& Encodings() {
  static const Json& file = *new Json(Json::parse(ReadData("encodings.json")));
  return file;
}

std::string Dump(const std::vector<int32_t>& ids) { return Json(ids).dump(); }

// Every test runs on each tokenizer that the reference was asked about.
class ReferenceTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const std::string name = GetParam();
    std::string dir = DataPath("tokenizers/" + name);
    if (name.starts_with("shared/")) {
      dir = SharedDir() + "/tokenizers/" + name.substr(7);
      if (!std::filesystem::exists(dir + "/tokenizer.json")) GTEST_SKIP() << dir << " is absent";
    }
    tokenizer_ = LoadTokenizer(dir);
    ASSERT_NE(tokenizer_, nullptr);
    expected_ = Encodings()["tokenizers"][name];
    texts_ = Encodings()["texts"].get<std::vector<std::string>>();
  }

  std::shared_ptr<const Tokenizer> tokenizer_;
  Json expected_;
  std::vector<std::string> texts_;
};

TEST_P(ReferenceTest, EncodesAsTheReference) {
  EXPECT_EQ(tokenizer_->vocab_size(), expected_["vocab_size"].get<int32_t>());
  ASSERT_EQ(expected_["ids"].size(), texts_.size());
  for (size_t i = 0; i < texts_.size(); ++i) {
    const auto ids = tokenizer_->Encode(texts_[i], /*add_special_tokens=*/false);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(Dump(*ids), expected_["ids"][i].dump()) << "text " << i << ": " << texts_[i];
  }
}

TEST_P(ReferenceTest, AddsSpecialTokensAsTheReference) {
  for (size_t i = 0; i < expected_["with_special"].size(); ++i) {
    const auto ids = tokenizer_->Encode(texts_[i], /*add_special_tokens=*/true);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(Dump(*ids), expected_["with_special"][i].dump()) << "text " << i;
  }
}

TEST_P(ReferenceTest, SpecialTokensStayTextWhenNotParsed) {
  const bool byte_level = GetParam() == "byte_level_bpe" || GetParam().starts_with("shared/");
  for (size_t i = 0; i < texts_.size(); ++i) {
    const auto ids = tokenizer_->Encode(texts_[i], /*add_special_tokens=*/false,
                                        /*parse_special=*/false);
    ASSERT_TRUE(ids.ok()) << ids.status();
    const Json& plain = expected_["plain"];
    const Json& want =
        plain.contains(std::to_string(i)) ? plain[std::to_string(i)] : expected_["ids"][i];
    EXPECT_EQ(Dump(*ids), want.dump()) << "text " << i << ": " << texts_[i];
    // A vocabulary of bytes can spell every text without its special tokens.
    if (!byte_level) continue;
    for (const int32_t id : *ids) {
      EXPECT_FALSE(tokenizer_->IsSpecial(id)) << *tokenizer_->IdToToken(id) << " in text " << i;
    }
  }
}

TEST_P(ReferenceTest, DecodesAsTheReference) {
  for (size_t i = 0; i < texts_.size(); ++i) {
    const std::vector<int32_t> ids = expected_["ids"][i];
    for (const bool skip : {false, true}) {
      const Json& differing = expected_[skip ? "decoded_skip" : "decoded"];
      const std::string key = std::to_string(i);
      const auto text = tokenizer_->Decode(ids, skip);
      ASSERT_TRUE(text.ok()) << text.status();
      EXPECT_EQ(*text, differing.contains(key) ? differing[key].get<std::string>() : texts_[i])
          << "text " << i << " skip " << skip;
    }
  }
  ASSERT_FALSE(expected_["random"].empty());
  for (const Json& random : expected_["random"]) {
    const auto text = tokenizer_->Decode(random["ids"].get<std::vector<int32_t>>(), false);
    ASSERT_TRUE(text.ok()) << text.status();
    EXPECT_EQ(*text, random["text"].get<std::string>()) << random["ids"].dump();
  }
}

TEST_P(ReferenceTest, TokensAndIdsMatch) {
  const int32_t size = tokenizer_->vocab_size();
  const int32_t stride = size > 10000 ? 37 : 1;
  for (int32_t id = 0; id < size; id += stride) {
    const std::optional<std::string> token = tokenizer_->IdToToken(id);
    ASSERT_TRUE(token.has_value()) << id;
    EXPECT_EQ(tokenizer_->TokenId(*token), id);
    EXPECT_FALSE(tokenizer_->TokenBytes(id).empty()) << id << " " << *token;
  }
  EXPECT_EQ(tokenizer_->IdToToken(size), std::nullopt);
  EXPECT_EQ(tokenizer_->IdToToken(-1), std::nullopt);
  EXPECT_EQ(tokenizer_->TokenBytes(size), "");
  EXPECT_EQ(tokenizer_->TokenBytes(-1), "");
}

TEST_P(ReferenceTest, ManyThreadsAtOnce) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (size_t k = 0; k < texts_.size(); ++k) {
        const size_t i = (k + t * 7) % texts_.size();
        const auto ids = tokenizer_->Encode(texts_[i], false);
        ASSERT_TRUE(ids.ok());
        ASSERT_EQ(ids->size(), expected_["ids"][i].size());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

INSTANTIATE_TEST_SUITE_P(All, ReferenceTest,
                         ::testing::Values("byte_level_bpe", "byte_fallback_bpe",
                                           "unigram_metaspace", "word_piece", "suffix_bpe",
                                           "no_decoder", "shared/gpt-2", "shared/qwen2"),
                         [](const auto& info) {
                           std::string name = info.param;
                           for (char& c : name) c = std::isalnum(c) ? c : '_';
                           return name;
                         });

TEST(TokenizerTest, BytesOfTokensJoinToTheText) {
  for (const char* name : {"byte_level_bpe", "byte_fallback_bpe"}) {
    const auto tokenizer = LoadTokenizer(DataPath(std::string("tokenizers/") + name));
    const std::string text = "naïve 你好 👩‍👩‍👧 the weir\tholds";
    const auto ids = tokenizer->Encode(text, false);
    ASSERT_TRUE(ids.ok());
    std::string joined;
    for (const int32_t id : *ids) joined += tokenizer->TokenBytes(id);
    const bool prefix_space = std::string(name) == "byte_fallback_bpe";
    EXPECT_EQ(joined, (prefix_space ? " " : "") + text);
  }
}

TEST(TokenizerTest, NamesSpecialTokens) {
  const auto tokenizer = LoadTokenizer(DataPath("tokenizers/byte_level_bpe"));
  EXPECT_EQ(tokenizer->eos_id(), 2);
  EXPECT_EQ(tokenizer->bos_id(), std::nullopt);
  EXPECT_EQ(tokenizer->NamedTokenText("eos_token"), "<|im_end|>");
  EXPECT_EQ(tokenizer->NamedTokenText("pad_token"), "<|endoftext|>");  // written as an object
  EXPECT_EQ(tokenizer->NamedTokenText("cls_token"), std::nullopt);
  EXPECT_TRUE(tokenizer->IsSpecial(0));
  EXPECT_FALSE(tokenizer->IsSpecial(3));
  EXPECT_FALSE(tokenizer->IsSpecial(-1));
  EXPECT_FALSE(tokenizer->IsSpecial(1 << 30));
  ASSERT_EQ(tokenizer->added_tokens().size(), 5u);
  EXPECT_EQ(tokenizer->added_tokens()[3].content, "<think>");
  EXPECT_FALSE(tokenizer->added_tokens()[3].special);
}

TEST(TokenizerTest, ConfigurationWinsAndMayDeclareTokens) {
  const std::string json = ReadData("tokenizers/byte_level_bpe/tokenizer.json");
  const auto base = Tokenizer::FromJson(json);
  ASSERT_TRUE(base.ok());
  const int32_t next = (*base)->vocab_size();
  const Json config = {{"eos_token", "<|im_start|>"},
                       {"extra_special_tokens", {{"image_token", "<|image|>"}}},
                       {"added_tokens_decoder",
                        {{std::to_string(next + 1), {{"content", "<tool>"}, {"special", false}}},
                         {std::to_string(next), {{"content", "<|image|>"}, {"special", true}}},
                         {"0", {{"content", "<|endoftext|>"}, {"special", true}}}}}};
  const Json special = {{"eos_token", "<|im_end|>"}, {"bos_token", {{"content", "<|endoftext|>"}}}};
  const auto loaded = Tokenizer::FromJson(json, config.dump(), special.dump());
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ((*loaded)->vocab_size(), next + 2);
  EXPECT_EQ((*loaded)->eos_id(), 1);
  EXPECT_EQ((*loaded)->bos_id(), 0);
  EXPECT_EQ((*loaded)->NamedTokenId("image_token"), next);
  const auto ids = (*loaded)->Encode("<|image|><tool>", false);
  ASSERT_TRUE(ids.ok());
  EXPECT_THAT(*ids, ElementsAre(next, next + 1));
}

TEST(TokenizerTest, BadInputIsRefusedWithASentence) {
  const auto tokenizer = LoadTokenizer(DataPath("tokenizers/byte_level_bpe"));
  const struct {
    std::string text;
    size_t byte;
  } invalid[] = {{"\xFF", 0},
                 {"ab\x80", 2},
                 {"\xE2\x82", 0},
                 {"ok \xED\xA0\x80", 3},
                 {"\xC0\xAF", 0},
                 {"x\xF4\x90\x80\x80", 1},
                 {std::string("\0\0\xE2", 3), 2}};
  for (const auto& c : invalid) {
    for (const bool parse : {true, false}) {
      const auto ids = tokenizer->Encode(c.text, true, parse);
      EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument);
      EXPECT_THAT(std::string(ids.status().message()),
                  HasSubstr("not valid UTF-8 at byte " + std::to_string(c.byte)));
    }
  }
  for (const int32_t id : {-1, tokenizer->vocab_size(), std::numeric_limits<int32_t>::max(),
                           std::numeric_limits<int32_t>::min()}) {
    const auto text = tokenizer->Decode({3, id}, false);
    EXPECT_EQ(text.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(text.status().message()),
                HasSubstr("token id " + std::to_string(id) + " at position 1"));
  }
}

TEST(TokenizerTest, AFolderWithoutTokenizerIsNotFound) {
  const Folder folder;
  const auto loaded = Tokenizer::Load(folder.path());
  EXPECT_EQ(loaded.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(loaded.status().message()), HasSubstr("tokenizer.json"));
  EXPECT_EQ(Tokenizer::Load("/nonexistent/folder").status().code(), absl::StatusCode::kNotFound);
  std::filesystem::create_directory(folder.path() + "/tokenizer.json");
  EXPECT_EQ(Tokenizer::Load(folder.path()).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(TokenizerTest, BrokenFilesAreRefusedAndNothingAborts) {
  const std::string good = ReadData("tokenizers/byte_level_bpe/tokenizer.json");
  const std::vector<std::string> broken = {
      "",
      "{",
      "[]",
      "null",
      "42",
      "{}",
      std::string("\0\xFF", 2),
      good.substr(0, good.size() / 2),
      R"({"model":{}})",
      R"({"version":"1.0","model":{"type":"Nope"}})",
      R"({"version":"1.0","added_tokens":[],"model":{"type":"WordLevel","vocab":{},"unk_token":"x"}})",
      R"({"version":"1.0","added_tokens":[],"model":{"type":"WordLevel","vocab":{"a":4294967295},"unk_token":"a"}})",
      R"({"version":"1.0","added_tokens":[],"model":{"type":"WordLevel","vocab":{"a":2147483647},"unk_token":"a"}})",
      R"({"version":"1.0","added_tokens":[],"decoder":{"type":"Nope"},"model":{"type":"WordLevel","vocab":{"a":0},"unk_token":"a"}})",
      R"({"version":"1.0","added_tokens":[],"decoder":7,"model":{"type":"WordLevel","vocab":{"a":0},"unk_token":"a"}})",
      R"({"version":"1.0","added_tokens":[{"id":"x"}],"model":{"type":"WordLevel","vocab":{"a":0},"unk_token":"a"}})",
      R"({"version":"1.0","added_tokens":[],"pre_tokenizer":{"type":"Split","pattern":{"Regex":"(("},"behavior":"Isolated","invert":false},"model":{"type":"WordLevel","vocab":{"a":0},"unk_token":"a"}})",
      std::string(100000, '['),
      std::string(100000, '{')};
  for (const std::string& json : broken) {
    const auto loaded = Tokenizer::FromJson(json);
    EXPECT_FALSE(loaded.ok()) << json.substr(0, 200);
    EXPECT_GT(loaded.status().message().size(), 20u);
  }
  for (const char* config : {"{", "[]", R"({"added_tokens_decoder":{"x":{"content":"y"}}})",
                             R"({"added_tokens_decoder":{"9":{}}})",
                             R"({"added_tokens_decoder":{"99999":{"content":"<new>"}}})"}) {
    const auto loaded = Tokenizer::FromJson(good, config);
    EXPECT_EQ(loaded.status().code(), absl::StatusCode::kInvalidArgument) << config;
    EXPECT_THAT(std::string(loaded.status().message()), HasSubstr("tokenizer_config.json"));
  }
}

// Whatever byte of the file is changed: it loads or is refused, and what loads can be used.
TEST(TokenizerTest, DamagedFilesNeverAbort) {
  const std::string good = ReadData("tokenizers/byte_fallback_bpe/tokenizer.json");
  std::mt19937 rng(7);
  int loaded_count = 0;
  for (int round = 0; round < 400; ++round) {
    std::string damaged = good;
    const int changes = 1 + rng() % 3;
    for (int k = 0; k < changes; ++k)
      damaged[rng() % damaged.size()] = "0\"{}[],:x\x80"[rng() % 10];
    const auto loaded = Tokenizer::FromJson(damaged);
    if (!loaded.ok()) continue;
    ++loaded_count;
    const auto ids = (*loaded)->Encode("the weir <s> é", true);
    if (ids.ok()) (void)(*loaded)->Decode(*ids, false);
  }
  EXPECT_GT(loaded_count, 10);
  EXPECT_LT(loaded_count, 390);
}

TEST(TokenizerTest, LongTextsTakeLinearTime) {
  const auto tokenizer = LoadTokenizer(DataPath("tokenizers/byte_level_bpe"));
  std::string text;
  while (text.size() < (2u << 20)) text += "the keeper walks 你 ";
  const auto ids = tokenizer->Encode(text, false);
  ASSERT_TRUE(ids.ok());
  const auto back = tokenizer->Decode(*ids, false);
  ASSERT_TRUE(back.ok());
  EXPECT_EQ(*back, text);
  const auto word = tokenizer->Encode(std::string(1 << 20, 'q'), false);
  ASSERT_TRUE(word.ok());
  EXPECT_EQ(word->size(), size_t{1} << 20);
}

// The pattern looks for a line's end behind the run, at every length of it, and gives up.
TEST(TokenizerTest, ATextThatThePatternGivesUpOnIsTheCallersFault) {
  Json file = Json::parse(ReadData("tokenizers/byte_level_bpe/tokenizer.json"));
  file["pre_tokenizer"]["use_regex"] = false;
  file["pre_tokenizer"] = {{"type", "Sequence"},
                           {"pretokenizers",
                            {{{"type", "Split"},
                              {"pattern", {{"Regex", "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+|\\S+"}}},
                              {"behavior", "Isolated"},
                              {"invert", false}},
                             file["pre_tokenizer"]}}};
  const auto tokenizer = Tokenizer::FromJson(file.dump());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_TRUE((*tokenizer)->Encode(std::string(100'000, ' '), false).ok());
  const auto ids = (*tokenizer)->Encode(std::string(11'000'000, ' '), false);
  EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(ids.status().message(), HasSubstr("too long for the tokenizer's pattern"));
}

}  // namespace
}  // namespace weir::text
