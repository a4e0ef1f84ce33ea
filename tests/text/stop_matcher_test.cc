#include "text/stop_matcher.h"

#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace weir::text {
namespace {

struct Outcome {
  std::string text;
  int stop_index = -1;

  bool operator==(const Outcome&) const = default;
};

Outcome Feed(StopMatcher matcher, const std::vector<std::string>& pieces) {
  Outcome out;
  for (const std::string& piece : pieces) {
    const StopMatcher::Result result = matcher.Push(piece);
    out.text += result.text;
    out.stop_index = result.stop_index;
  }
  out.text += matcher.Flush();
  return out;
}

// The definition: the match that ends first, of those the longest.
Outcome Expected(const std::string& text, const std::vector<std::string>& stops, bool include) {
  for (size_t end = 1; end <= text.size(); ++end) {
    int best = -1;
    for (size_t i = 0; i < stops.size(); ++i) {
      const std::string& stop = stops[i];
      if (stop.empty() || stop.size() > end || text.compare(end - stop.size(), stop.size(), stop)) {
        continue;
      }
      if (best < 0 || stop.size() > stops[best].size()) best = static_cast<int>(i);
    }
    if (best >= 0) return {text.substr(0, include ? end : end - stops[best].size()), best};
  }
  return {text, -1};
}

TEST(StopMatcherTest, EverySplitInTwoAndThreeGivesTheSame) {
  const std::string text = "one two\n\nUser: three\xE2\x82\xAC<|end|>tail";
  const std::vector<std::vector<std::string>> cases = {
      {"User:"}, {"<|end|>", "\n\nUser"}, {"\xE2\x82\xAC<"}, {"zzz"}, {"o", "two"}, {"", "tail"},
      {text}};
  for (const std::vector<std::string>& stops : cases) {
    for (const bool include : {false, true}) {
      const Outcome expected = Expected(text, stops, include);
      for (size_t i = 0; i <= text.size(); ++i) {
        for (size_t j = i; j <= text.size(); ++j) {
          const std::vector<std::string> pieces = {text.substr(0, i), text.substr(i, j - i),
                                                   text.substr(j)};
          ASSERT_EQ(Feed(StopMatcher(stops, include), pieces), expected)
              << "first stop " << stops[0] << " cut at " << i << ", " << j;
        }
      }
    }
  }
}

TEST(StopMatcherTest, NothingOfAStopStringLeaks) {
  StopMatcher matcher({"</answer>"});
  EXPECT_EQ(matcher.Push("yes</ans").text, "yes");
  EXPECT_EQ(matcher.Push("wer").text, "");
  const StopMatcher::Result result = matcher.Push("> and more");
  EXPECT_EQ(result.text, "");
  EXPECT_EQ(result.stop_index, 0);
  EXPECT_TRUE(matcher.stopped());
  EXPECT_EQ(matcher.Push("still").text, "");
  EXPECT_EQ(matcher.Push("still").stop_index, 0);
  EXPECT_EQ(matcher.Flush(), "");
}

TEST(StopMatcherTest, FalseStartIsGivenOutAsSoonAsItIsDecided) {
  StopMatcher matcher({"aab"});
  EXPECT_EQ(matcher.Push("aa").text, "");
  EXPECT_EQ(matcher.Push("a").text, "a");  // "aa" may still begin the stop string
  EXPECT_EQ(matcher.Push("c").text, "aac");
  EXPECT_EQ(matcher.Push("x").text, "x");
  EXPECT_EQ(matcher.Push("a").text, "");
  EXPECT_EQ(matcher.Flush(), "a");
}

TEST(StopMatcherTest, CharactersStayWhole) {
  // The euro sign's first two bytes also begin the stop string's character.
  StopMatcher matcher({"\xE2\x82\xAD"});
  EXPECT_EQ(matcher.Push("5 \xE2\x82\xAC").text, "5 \xE2\x82\xAC");
  EXPECT_EQ(matcher.Push("6 \xE2\x82\xAD").text, "6 ");
}

TEST(StopMatcherTest, RandomTextsAndStops) {
  std::mt19937 rng(20240611);
  const auto word = [&](int max) {
    std::string out(rng() % max, ' ');
    for (char& c : out) c = "ab"[rng() % 2];
    return out;
  };
  int matched = 0;
  for (int round = 0; round < 4000; ++round) {
    const std::vector<std::string> stops = {word(7), word(5), word(9)};
    std::vector<std::string> pieces;
    std::string text;
    for (int i = 0; i < 8; ++i) text += pieces.emplace_back(word(5));
    const bool include = round % 2 == 0;
    const Outcome expected = Expected(text, stops, include);
    matched += expected.stop_index >= 0;
    ASSERT_EQ(Feed(StopMatcher(stops, include), pieces), expected) << "round " << round;
  }
  EXPECT_GT(matched, 500);
  EXPECT_LT(matched, 3900);
}

}  // namespace
}  // namespace weir::text
