#include "server/utf8.h"

#include "gtest/gtest.h"

namespace weir::server {
namespace {

TEST(Utf8Test, FindsTheFirstBadByte) {
  EXPECT_EQ(FirstInvalidUtf8(""), std::nullopt);
  EXPECT_EQ(FirstInvalidUtf8("plain, \xc3\xa9, \xe2\x82\xac, \xf0\x9f\x98\x80"), std::nullopt);
  EXPECT_EQ(FirstInvalidUtf8(std::string_view("a\0b", 3)), std::nullopt);
  EXPECT_EQ(FirstInvalidUtf8("ab\xff"), 2u);
  EXPECT_EQ(FirstInvalidUtf8("\x80"), 0u);              // continues nothing
  EXPECT_EQ(FirstInvalidUtf8("a\xc3"), 1u);             // cut
  EXPECT_EQ(FirstInvalidUtf8("a\xe2\x82"), 1u);         // cut
  EXPECT_EQ(FirstInvalidUtf8("\xc0\xaf"), 0u);          // overlong
  EXPECT_EQ(FirstInvalidUtf8("\xe0\x80\xaf"), 0u);      // overlong
  EXPECT_EQ(FirstInvalidUtf8("\xf0\x80\x80\xaf"), 0u);  // overlong
  EXPECT_EQ(FirstInvalidUtf8("x\xed\xa0\x80"), 1u);     // surrogate
  EXPECT_EQ(FirstInvalidUtf8("\xf4\x90\x80\x80"), 0u);  // past U+10FFFF
  EXPECT_EQ(FirstInvalidUtf8("\xf5\x80\x80\x80"), 0u);
}

TEST(Utf8Test, ShortensAtCharacters) {
  EXPECT_EQ(ShortenedUtf8("abc", 3), "abc");
  EXPECT_EQ(ShortenedUtf8("abcd", 3), "...");
  EXPECT_EQ(ShortenedUtf8("abcdef", 5), "ab...");
  EXPECT_EQ(ShortenedUtf8("\xe2\x82\xac\xe2\x82\xac\xe2\x82\xac", 7), "\xe2\x82\xac...");
  EXPECT_EQ(ShortenedUtf8("a\xff"
                          "b",
                          10),
            "a?b");
  for (size_t most = 3; most < 20; ++most) {
    const std::string out =
        ShortenedUtf8("\xf0\x9f\x98\x80\xc3\xa9\xe2\x82\xac plain \xff tail", most);
    EXPECT_LE(out.size(), most);
    EXPECT_EQ(FirstInvalidUtf8(out), std::nullopt);
  }
}

}  // namespace
}  // namespace weir::server
