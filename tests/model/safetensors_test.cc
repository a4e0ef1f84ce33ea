#include "model/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "tests/model/checkpoint_writer.h"

namespace weir::model {
namespace {

using testing::HasSubstr;

std::string Entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return absl::StrCat("\"", name, "\":{\"dtype\":\"", dtype, "\",\"shape\":", shape,
                      ",\"data_offsets\":", offsets, "}");
}

TEST(Safetensors, ReadsWhatWasWritten) {
  const std::string folder = MakeFolder("read");
  const std::string path = folder + "/model.safetensors";
  WriteRaw(path,
           absl::StrCat(
               "{\"__metadata__\":{\"format\":\"pt\"},", Entry("b", "BF16", "[2,1]", "[8,12]"), ",",
               Entry("a", "F32", "[2]", "[0,8]"), ",", Entry("none", "I64", "[0,5]", "[8,8]"), ",",
               Entry("scalar", "F8_E4M3", "[]", "[12,13]"), "}   "),
           "0123456789abc");
  auto file = SafetensorsFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->tensors().size(), 4u);
  const StoredTensor* b = file->Find("b");
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(b->dtype, DType::kBF16);
  EXPECT_EQ(b->ShapeString(), "[2, 1]");
  EXPECT_EQ(b->bytes, 4);
  EXPECT_EQ(static_cast<char>(b->data[0]), '8');
  EXPECT_EQ(file->Find("none")->bytes, 0);
  EXPECT_EQ(file->Find("scalar")->dtype, std::nullopt);
  EXPECT_EQ(file->Find("absent"), nullptr);
  // The data outlives a move of its owner.
  SafetensorsFile moved = *std::move(file);
  EXPECT_EQ(static_cast<char>(moved.Find("a")->data[7]), '7');
}

struct Attack {
  const char* name;
  std::string header;
  std::string data;
  int64_t header_bytes;
  const char* says;
};

class SafetensorsAttack : public testing::TestWithParam<Attack> {};

TEST_P(SafetensorsAttack, IsRefusedWithASentence) {
  const Attack& attack = GetParam();
  const std::string path = MakeFolder("attack") + "/model.safetensors";
  WriteRaw(path, attack.header, attack.data, attack.header_bytes);
  auto file = SafetensorsFile::Open(path);
  ASSERT_FALSE(file.ok());
  EXPECT_EQ(file.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(file.status().message()), HasSubstr(attack.says));
  EXPECT_THAT(std::string(file.status().message()), HasSubstr(path));
}

std::string One(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return absl::StrCat("{", Entry("w", dtype, shape, offsets), "}");
}

std::string Two(const std::string& first, const std::string& second) {
  return absl::StrCat("{", first, ",", second, "}");
}

INSTANTIATE_TEST_SUITE_P(
    All, SafetensorsAttack,
    testing::Values(
        Attack{"HugeHeader", "{}", "", int64_t{1} << 62, "at most 100000000"},
        Attack{"HeaderPastEnd", "{}", "", 3000, "cut short"},
        Attack{"NotJson", "{\"w\": ", "", -1, "not valid JSON"},
        Attack{"NotAnObject", "[1, 2]", "", -1, "not a JSON object"},
        Attack{"Empty", "", "", -1, "not valid JSON"},
        Attack{"NotUtf8", "{\"w\xff\xfe\": {}}", "", -1, "not valid JSON"},
        Attack{"Binary", std::string("\0\0\0\0", 4), "", -1, "not valid JSON"},
        Attack{"EntryIsNumber", "{\"w\": 3}", "", -1, "lacks dtype"},
        Attack{"NoShape", "{\"w\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", "1234", -1,
               "lacks dtype"},
        Attack{"UnknownType", One("F33", "[1]", "[0,4]"), "1234", -1, "unknown dtype \"F33\""},
        Attack{"TypeIsNumber", "{\"w\":{\"dtype\":4,\"shape\":[1],\"data_offsets\":[0,4]}}", "1234",
               -1, "not a string"},
        Attack{"NegativeShape", One("F32", "[-1]", "[0,4]"), "1234", -1, "not a size"},
        Attack{"FractionalShape", One("F32", "[1.5]", "[0,4]"), "1234", -1, "not a size"},
        Attack{"ShapeIsText", One("F32", "\"[1]\"", "[0,4]"), "1234", -1, "not a short list"},
        Attack{"RankOf17", One("U8", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", "[0,1]"), "1", -1,
               "not a short list"},
        Attack{"OverflowingShape", One("F32", "[4611686018427387904,4]", "[0,4]"), "1234", -1,
               "size overflows"},
        Attack{"HugeSize", One("F32", "[18446744073709551615]", "[0,4]"), "1234", -1, "not a size"},
        Attack{"OffsetsPastEnd", One("F32", "[2]", "[0,8]"), "1234", -1, "4 bytes of data"},
        Attack{"OffsetsOverflow", One("F32", "[1]", "[9223372036854775807,9223372036854775811]"),
               "1234", -1, "not two sizes"},
        Attack{"OffsetsReversed", One("F32", "[1]", "[4,0]"), "1234", -1, "ends before"},
        Attack{"ThreeOffsets", One("F32", "[1]", "[0,4,4]"), "1234", -1, "not two sizes"},
        Attack{"SizeDisagrees", One("F32", "[3]", "[0,8]"), "12345678", -1, "needs 12"},
        Attack{"Overlap",
               Two(Entry("a", "F32", "[2]", "[0,8]"), Entry("b", "F32", "[2]", "[4,12]")),
               "123456789012", -1, "\"a\" and \"b\" overlap"},
        Attack{"SameBytesTwice",
               Two(Entry("a", "F32", "[1]", "[0,4]"), Entry("b", "F32", "[1]", "[0,4]")), "1234",
               -1, "overlap"},
        Attack{"Gap", Two(Entry("a", "F32", "[1]", "[0,4]"), Entry("b", "F32", "[1]", "[8,12]")),
               "123456789012", -1, "bytes 4 to 8"},
        Attack{"TrailingBytes", One("F32", "[1]", "[0,4]"), "12345678", -1, "last 4 bytes"},
        Attack{"NoTensorsButData", "{}", "12345678", -1, "last 8 bytes"},
        Attack{"NameTwice",
               Two(Entry("w", "F32", "[1]", "[0,4]"), Entry("w", "F32", "[1]", "[4,8]")),
               "12345678", -1, "names \"w\" twice"},
        Attack{"KeyTwice",
               "{\"w\":{\"dtype\":\"F32\",\"dtype\":\"F16\",\"shape\":[1],\"data_offsets\":[0,4]}}",
               "1234", -1, "names \"dtype\" twice"}),
    [](const auto& info) { return info.param.name; });

TEST(Safetensors, DeeplyNestedHeaderIsRefused) {
  const std::string path = MakeFolder("deep") + "/model.safetensors";
  std::string header = "{\"w\": ";
  header.append(200000, '[');
  WriteRaw(path, header, "");
  EXPECT_EQ(SafetensorsFile::Open(path).status().code(), absl::StatusCode::kDataLoss);
  header.append(200000, ']');
  WriteRaw(path, absl::StrCat(header, "}"), "");
  EXPECT_EQ(SafetensorsFile::Open(path).status().code(), absl::StatusCode::kDataLoss);
}

TEST(Safetensors, ShortAndMissingFiles) {
  const std::string folder = MakeFolder("short");
  WriteText(folder + "/model.safetensors", "1234");
  EXPECT_THAT(std::string(SafetensorsFile::Open(folder + "/model.safetensors").status().message()),
              HasSubstr("it has 4 bytes"));
  EXPECT_EQ(SafetensorsFile::Open(folder + "/absent").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(SafetensorsFile::Open(folder).status().code(), absl::StatusCode::kNotFound);
}

// Every truncation of a good file is refused.
TEST(Safetensors, EveryTruncationIsRefused) {
  const std::string folder = MakeFolder("truncate");
  const std::string header = One("F32", "[4]", "[0,16]"), data = "0123456789abcdef";
  for (size_t keep = 0; keep < data.size(); ++keep) {
    WriteRaw(folder + "/t", header, data.substr(0, keep));
    EXPECT_FALSE(SafetensorsFile::Open(folder + "/t").ok()) << keep;
  }
  for (size_t keep = 0; keep < header.size(); ++keep) {
    WriteRaw(folder + "/t", header.substr(0, keep), "", static_cast<int64_t>(header.size()));
    EXPECT_FALSE(SafetensorsFile::Open(folder + "/t").ok()) << keep;
  }
}

class ShardsTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = MakeFolder("shards");
    WriteRaw(folder_ + "/one.safetensors",
             absl::StrCat("{", Entry("a", "F32", "[1]", "[0,4]"), "}"), "1234");
    WriteRaw(folder_ + "/two.safetensors",
             absl::StrCat("{", Entry("b", "F32", "[1]", "[0,4]"), "}"), "5678");
  }
  absl::Status Open(const std::string& map) {
    WriteText(folder_ + "/model.safetensors.index.json",
              absl::StrCat("{\"weight_map\": ", map, "}"));
    return Checkpoint::Open(folder_).status();
  }
  std::string folder_;
};

TEST_F(ShardsTest, AreReadTogether) {
  WriteText(folder_ + "/model.safetensors.index.json",
            R"({"metadata": {}, "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})");
  auto checkpoint = Checkpoint::Open(folder_);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ(checkpoint->tensors().size(), 2u);
  EXPECT_EQ(static_cast<char>(checkpoint->Find("b")->data[0]), '5');
  EXPECT_GT(checkpoint->file_bytes(), 16);
}

TEST_F(ShardsTest, BadIndexesAreRefused) {
  EXPECT_THAT(std::string(Open(R"({"a": "../one.safetensors"})").message()),
              HasSubstr("plain file name"));
  EXPECT_THAT(std::string(Open(R"({"a": "/etc/passwd"})").message()), HasSubstr("plain file name"));
  EXPECT_THAT(std::string(Open(R"({"a": 7})").message()), HasSubstr("not a string"));
  EXPECT_THAT(std::string(Open(R"({"a": "two.safetensors"})").message()),
              HasSubstr("which lacks it"));
  EXPECT_THAT(std::string(Open(R"({"a": "three.safetensors"})").message()),
              HasSubstr("cannot open"));
  EXPECT_THAT(std::string(Open("[]").message()), HasSubstr("weight_map"));
  WriteRaw(folder_ + "/two.safetensors", absl::StrCat("{", Entry("a", "F32", "[1]", "[0,4]"), "}"),
           "5678");
  EXPECT_THAT(std::string(Open(R"({"a": "one.safetensors", "b": "two.safetensors"})").message()),
              HasSubstr("is in two files"));
  EXPECT_THAT(std::string(Checkpoint::Open(MakeFolder("nothing")).status().message()),
              HasSubstr("neither model.safetensors nor"));
}

}  // namespace
}  // namespace weir::model
