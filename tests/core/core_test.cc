#include <cmath>
#include <limits>

#include "core/buffer.h"
#include "core/dtype.h"
#include "core/error_details.h"
#include "core/philox.h"
#include "core/tensor.h"
#include "gtest/gtest.h"

namespace weir {
namespace {

TEST(BFloat16, RoundsToNearestEvenAndKeepsNaN) {
  EXPECT_EQ(ToBFloat16(1.0f).bits, 0x3f80);
  EXPECT_EQ(ToBFloat16(1.0f + 0x1p-8f).bits, 0x3f80);            // tie, even stays
  EXPECT_EQ(ToBFloat16(1.0f + 3 * 0x1p-8f).bits, 0x3f82);        // tie, odd moves up
  EXPECT_EQ(ToBFloat16(1.0f + 0x1p-8f + 0x1p-20f).bits, 0x3f81);  // above the tie
  EXPECT_TRUE(std::isnan(ToFloat(ToBFloat16(std::numeric_limits<float>::quiet_NaN()))));
  EXPECT_TRUE(std::isinf(ToFloat(ToBFloat16(std::numeric_limits<float>::max()))));
}

TEST(Float16, AllClassesOfValues) {
  EXPECT_EQ(ToFloat(Float16{0x3c00}), 1.0f);
  EXPECT_EQ(ToFloat(Float16{0xc000}), -2.0f);
  EXPECT_EQ(ToFloat(Float16{0x0001}), 0x1p-24f);
  EXPECT_EQ(ToFloat(Float16{0x83ff}), -1023 * 0x1p-24f);
  EXPECT_EQ(ToFloat(Float16{0x7bff}), 65504.0f);
  EXPECT_TRUE(std::isinf(ToFloat(Float16{0x7c00})));
  EXPECT_TRUE(std::isnan(ToFloat(Float16{0x7e01})));
  EXPECT_EQ(std::signbit(ToFloat(Float16{0x8000})), true);
}

TEST(DType, NamesRoundTrip) {
  for (DType d : {DType::kF32, DType::kBF16, DType::kF16, DType::kI32, DType::kI64, DType::kU8}) {
    EXPECT_EQ(ParseDType(DTypeName(d)), d);
  }
  EXPECT_EQ(ParseDType("bfloat16"), DType::kBF16);
  EXPECT_FALSE(ParseDType("fp8"));
}

TEST(TensorView, RowsColumnsAndReshape) {
  float data[24];
  for (int i = 0; i < 24; ++i) data[i] = static_cast<float>(i);
  TensorView t(data, {4, 6});
  EXPECT_EQ(t.ToString(), "[4, 6] f32");
  EXPECT_EQ(*t.Rows(2, 1).data<float>(), 12.0f);
  TensorView columns = t.Columns(2, 4);
  EXPECT_FALSE(columns.contiguous());
  EXPECT_EQ(*columns.row<float>(1), 8.0f);
  TensorView split = columns.Reshape({4, 2, 2});
  EXPECT_EQ(split.row_stride(), 6);
  EXPECT_EQ(*split.row<float>(3), 20.0f);
}

TEST(Buffer, AlignedZeroedAndRefusesTheImpossible) {
  auto buffer = Buffer::Allocate(1 << 20, "a test");
  ASSERT_TRUE(buffer.ok());
  EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % 64, 0u);
  EXPECT_EQ(buffer->as<uint8_t>()[12345], 0);
  auto impossible = Buffer::Allocate(size_t{1} << 60, "a test");
  ASSERT_FALSE(impossible.ok());
  EXPECT_EQ(impossible.status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(ErrorDetails, TravelWithTheStatus) {
  absl::Status status = InvalidFields({{"sampling.top_p", "is 1.5"}, {"prompt", "is empty"}});
  ErrorDetails details = GetErrorDetails(status);
  ASSERT_EQ(details.field_violations.size(), 2u);
  EXPECT_EQ(details.field_violations[1].first, "prompt");
  EXPECT_EQ(details.field_violations[1].second, "is empty");
  details = GetErrorDetails(Exhausted("queue", "the queue is full", 250));
  EXPECT_EQ(details.exhausted_resource, "queue");
  EXPECT_EQ(details.retry_after_ms, 250);
  EXPECT_TRUE(GetErrorDetails(absl::OkStatus()).field_violations.empty());
}

// Known-answer vectors published with the Random123 library.
TEST(Philox, KnownAnswers) {
  EXPECT_EQ(Philox(0, 0), (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox(~0ull, ~0ull, ~0ull),
            (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
}

}  // namespace
}  // namespace weir
