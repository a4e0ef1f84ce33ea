#include "core/bytes.h"

#include "gtest/gtest.h"

namespace weir {
namespace {

TEST(Bytes, ParsesWhatPeopleWrite) {
  EXPECT_EQ(*ParseBytes("24GiB"), int64_t{24} << 30);
  EXPECT_EQ(*ParseBytes("1.5 g"), int64_t{3} << 29);
  EXPECT_EQ(*ParseBytes("2GB"), 2000000000);
  EXPECT_EQ(*ParseBytes("512 MiB"), int64_t{512} << 20);
  EXPECT_EQ(*ParseBytes("17"), 17);
  for (const char* bad : {"", "GiB", "-1GiB", "1XB", "nan", "1e40", "inf", "1 GiB 2"}) {
    EXPECT_FALSE(ParseBytes(bad).ok()) << bad;
  }
}

TEST(Bytes, FormatsThreeDigits) {
  EXPECT_EQ(FormatBytes(17), "17 B");
  EXPECT_EQ(FormatBytes(209715), "205 KiB");
  EXPECT_EQ(FormatBytes(int64_t{3} << 29), "1.50 GiB");
  EXPECT_EQ(FormatBytes(int64_t{24} << 30), "24.0 GiB");
}

}  // namespace
}  // namespace weir
