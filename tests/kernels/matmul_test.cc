#include "kernels/matmul.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "core/tensor.h"
#include "tests/kernels/dense_test_support.h"

namespace weir::kernels {
namespace {

using namespace testing;  // NOLINT: the support of this test

struct Case {
  int64_t rows, in, out;
  DType compute;
  DType stored = DType::kF32;
  bool bias = false;
  bool strided = false;
};

// Sizes around every edge: one element, odd `in`, `out` not a multiple of the panel, around the row
// tiles of the kernels, a depth of several blocks, the widths of Qwen3.5-0.8B.
std::vector<Case> Cases() {
  std::vector<Case> cases;
  const int64_t sizes[][3] = {{1, 1, 1},      {1, 7, 5},       {2, 64, 48},   {3, 33, 17},
                              {4, 2, 129},    {5, 100, 130},   {6, 31, 64},   {8, 40, 257},
                              {13, 63, 80},   {16, 256, 96},   {17, 129, 33}, {31, 80, 64},
                              {64, 512, 200}, {100, 1024, 80}, {7, 3584, 48}, {1, 1024, 4099},
                              {130, 77, 515}, {33, 5001, 40}};
  int n = 0;
  for (const auto& size : sizes) {
    for (DType compute : {DType::kF32, DType::kBF16}) {
      const DType stored[] = {DType::kF32, DType::kBF16, DType::kF16};
      cases.push_back({size[0], size[1], size[2], compute, stored[n % 3], n % 2 == 0, n % 5 < 2});
      ++n;
    }
  }
  return cases;
}

std::string Name(const Case& c) {
  return std::to_string(c.rows) + "x" + std::to_string(c.in) + "x" + std::to_string(c.out) + " " +
         std::string(DTypeName(c.compute)) + " from " + std::string(DTypeName(c.stored));
}

// Any float whose value fits f16 exactly, so that all three storage types hold about the same.
Float16 ToFloat16Exact(float x) {
  if (x == 0) return {0};
  int exponent = 0;
  const float m = std::frexp(std::fabs(x), &exponent);  // [0.5, 1)
  const auto mantissa = static_cast<uint16_t>(static_cast<int>(m * 2048.0f) & 0x3ff);
  return {static_cast<uint16_t>((x < 0 ? 0x8000 : 0) | ((exponent + 14) << 10) | mantissa)};
}

struct Problem {
  explicit Problem(const Case& c) : c(c) {
    const std::vector<float> raw = RandomFloats(c.out * c.in, c.out * 31 + c.in, 0.5f);
    // One byte of offset: checkpoint memory need not be aligned.
    memory.resize(raw.size() * 4 + 1);
    w.resize(raw.size());
    for (size_t i = 0; i < raw.size(); ++i) {
      const float clamped = std::fabs(raw[i]) < 0x1p-12f ? 0.25f : raw[i];
      char* at = memory.data() + 1;
      if (c.stored == DType::kF32) {
        std::memcpy(at + i * 4, &clamped, 4);
        w[i] = clamped;
      } else if (c.stored == DType::kBF16) {
        const BFloat16 v = ToBFloat16(clamped);
        std::memcpy(at + i * 2, &v, 2);
        w[i] = ToFloat(v);
      } else {
        const Float16 v = ToFloat16Exact(clamped);
        std::memcpy(at + i * 2, &v, 2);
        w[i] = ToFloat(v);
      }
      w[i] = RoundTo(c.compute, w[i]);
    }
    x_stride = c.in + (c.strided ? 3 : 0);
    y_stride = c.out + (c.strided ? 5 : 0);
    x = RandomFloats(c.rows * x_stride, 7);
    if (c.bias) bias = RandomFloats(c.out, 8);
  }

  TensorView Weight() { return TensorView(memory.data() + 1, c.stored, {c.out, c.in}); }
  TensorView X() { return TensorView(x.data(), {c.rows, x_stride}).Columns(0, c.in); }
  TensorView Bias() { return c.bias ? TensorView(bias.data(), {c.out}) : TensorView(); }

  // All rows at once; the gaps between strided rows must stay poisoned.
  std::vector<float> Run(const PackedMatrix& packed, Stream stream) {
    std::vector<float> memory_of_y(c.rows * y_stride, kPoison);
    MatMul(X(), packed, Bias(),
           TensorView(memory_of_y.data(), {c.rows, y_stride}).Columns(0, c.out), stream);
    std::vector<float> y(c.rows * c.out);
    for (int64_t r = 0; r < c.rows; ++r) {
      for (int64_t n = 0; n < c.out; ++n) y[r * c.out + n] = memory_of_y[r * y_stride + n];
      for (int64_t n = c.out; n < y_stride; ++n) {
        EXPECT_TRUE(std::isnan(memory_of_y[r * y_stride + n])) << "wrote past row " << r;
      }
    }
    return y;
  }

  Case c;
  std::vector<char> memory;
  std::vector<float> w, x, bias;  // w as kept: rounded to the compute type
  int64_t x_stride = 0, y_stride = 0;
};

TEST(MatMulTest, AgreesWithDoubleLoops) {
  Threads threads(2);
  for (const Case& c : Cases()) {
    SCOPED_TRACE(Name(c));
    Problem problem(c);
    PackedMatrix packed = *PackedMatrix::Pack(problem.Weight(), c.compute, threads.stream());
    for (SimdLevel level : MachineLevels()) {
      SCOPED_TRACE(SimdLevelName(level));
      AtLevel at(level);
      const std::vector<float> y = problem.Run(packed, threads.stream());
      for (int64_t r = 0; r < c.rows; ++r) {
        for (int64_t n = 0; n < c.out; ++n) {
          double sum = c.bias ? problem.bias[n] : 0.0, magnitude = std::fabs(sum);
          for (int64_t i = 0; i < c.in; ++i) {
            const double term = double{RoundTo(c.compute, problem.x[r * problem.x_stride + i])} *
                                problem.w[n * c.in + i];
            sum += term;
            magnitude += std::fabs(term);
          }
          // A chain of n multiply-adds rounds n times (2 n without FMA), each time at most kEps of
          // a partial sum, which is at most the sum of magnitudes; the bias adds one more.
          const double tolerance = (2.0 * c.in + 1) * kEps * magnitude;
          ASSERT_NEAR(y[r * c.out + n], sum, tolerance) << "row " << r << " column " << n;
        }
      }
    }
  }
}

TEST(MatMulTest, ARowIsTheSameAloneInAnyBatchAndOnAnyNumberOfThreads) {
  Threads one(1), two(2), three(3);
  for (DType compute : {DType::kF32, DType::kBF16}) {
    for (int64_t in : {37, 512, 4203}) {  // the last: several blocks of depth
      const Case c{67, in, 273, compute, DType::kF32, true, false};
      SCOPED_TRACE(Name(c));
      Problem problem(c);
      PackedMatrix packed = *PackedMatrix::Pack(problem.Weight(), compute, two.stream());
      for (SimdLevel level : MachineLevels()) {
        SCOPED_TRACE(SimdLevelName(level));
        AtLevel at(level);
        const std::vector<float> all = problem.Run(packed, three.stream());
        EXPECT_TRUE(SameBits(all, problem.Run(packed, one.stream())));
        EXPECT_TRUE(SameBits(all, problem.Run(packed, two.stream())));
        int64_t begin = 0;
        for (int64_t count = 1; begin < c.rows; begin += count, count = count % 19 + 1) {
          const int64_t rows = std::min(count, c.rows - begin);
          std::vector<float> y(rows * c.out, kPoison);
          MatMul(problem.X().Rows(begin, rows), packed, problem.Bias(),
                 TensorView(y.data(), {rows, c.out}), two.stream());
          ASSERT_EQ(std::memcmp(y.data(), all.data() + begin * c.out, y.size() * sizeof(float)), 0)
              << rows << " rows from " << begin;
        }
      }
    }
  }
}

TEST(MatMulTest, EveryBatchSizeUpToFortyGivesTheRowsOfSizeOne) {
  Threads two(2);
  for (DType compute : {DType::kF32, DType::kBF16}) {
    const Case c{40, 65, 81, compute};
    Problem problem(c);
    PackedMatrix packed = *PackedMatrix::Pack(problem.Weight(), compute, two.stream());
    for (SimdLevel level : MachineLevels()) {
      SCOPED_TRACE(SimdLevelName(level));
      AtLevel at(level);
      std::vector<float> single(c.rows * c.out, kPoison);
      for (int64_t r = 0; r < c.rows; ++r) {
        MatMul(problem.X().Rows(r, 1), packed, TensorView(),
               TensorView(single.data() + r * c.out, {1, c.out}), two.stream());
      }
      for (int64_t rows = 2; rows <= c.rows; ++rows) {
        std::vector<float> y(rows * c.out, kPoison);
        MatMul(problem.X().Rows(0, rows), packed, TensorView(), TensorView(y.data(), {rows, c.out}),
               two.stream());
        ASSERT_EQ(std::memcmp(y.data(), single.data(), y.size() * sizeof(float)), 0) << rows;
      }
    }
  }
}

TEST(MatMulTest, NoRowsIsNoWork) {
  Threads one(1);
  Problem problem({1, 8, 8, DType::kF32});
  PackedMatrix packed = *PackedMatrix::Pack(problem.Weight(), DType::kF32, one.stream());
  float unused = kPoison;
  MatMul(TensorView(&unused, {0, 8}), packed, TensorView(), TensorView(&unused, {0, 8}),
         one.stream());
  EXPECT_TRUE(std::isnan(unused));
}

TEST(MatMulTest, NanAndInfinityStayInTheirRowAndColumn) {
  Threads one(1);
  for (DType compute : {DType::kF32, DType::kBF16}) {
    Problem problem({3, 48, 33, compute});
    problem.x[problem.x_stride + 5] = kPoison;
    PackedMatrix packed = *PackedMatrix::Pack(problem.Weight(), compute, one.stream());
    for (SimdLevel level : MachineLevels()) {
      AtLevel at(level);
      const std::vector<float> y = problem.Run(packed, one.stream());
      for (int64_t i = 0; i < 3 * 33; ++i) EXPECT_EQ(std::isnan(y[i]), i / 33 == 1) << i;
    }
  }
}

TEST(PackedMatrixTest, UnpackRowGivesTheStoredValuesBack) {
  Threads two(2);
  for (const Case& c : Cases()) {
    SCOPED_TRACE(Name(c));
    Problem problem(c);
    for (SimdLevel level : MachineLevels()) {
      AtLevel at(level);
      PackedMatrix packed = *PackedMatrix::Pack(problem.Weight(), c.compute, two.stream());
      EXPECT_EQ(packed.in(), c.in);
      EXPECT_EQ(packed.out(), c.out);
      std::vector<float> row(c.in + 1, kPoison);
      for (int64_t n = 0; n < c.out; ++n) {
        packed.UnpackRow(n, row.data());
        ASSERT_EQ(std::memcmp(row.data(), problem.w.data() + n * c.in, c.in * sizeof(float)), 0)
            << n;
        ASSERT_TRUE(std::isnan(row[c.in]));
      }
    }
  }
}

TEST(PackedMatrixTest, EveryHalfFloatIsReadExactly) {
  Threads one(1);
  std::vector<Float16> all(65536);
  for (int i = 0; i < 65536; ++i) all[i] = {static_cast<uint16_t>(i)};
  PackedMatrix packed =
      *PackedMatrix::Pack(TensorView(all.data(), {256, 256}), DType::kF32, one.stream());
  std::vector<float> row(256);
  for (int n = 0; n < 256; ++n) {
    packed.UnpackRow(n, row.data());
    for (int i = 0; i < 256; ++i) {
      const float want = ToFloat(all[n * 256 + i]);
      if (std::isnan(want)) {
        ASSERT_TRUE(std::isnan(row[i])) << n * 256 + i;
      } else {
        ASSERT_EQ(std::memcmp(&row[i], &want, 4), 0) << n * 256 + i;
      }
    }
  }
}

TEST(PackedMatrixTest, StackedMatricesAreOneMatrix) {
  Threads two(2);
  for (DType compute : {DType::kF32, DType::kBF16}) {
    Problem a({1, 70, 37, compute, DType::kF32}), b({1, 70, 1, compute, DType::kBF16}),
        c({1, 70, 90, compute, DType::kF16});
    const TensorView parts[] = {a.Weight(), b.Weight(), c.Weight()};
    PackedMatrix packed = *PackedMatrix::PackStacked(parts, 3, compute, two.stream());
    ASSERT_EQ(packed.out(), 37 + 1 + 90);
    std::vector<float> all = a.w;
    all.insert(all.end(), b.w.begin(), b.w.end());
    all.insert(all.end(), c.w.begin(), c.w.end());
    std::vector<float> row(70);
    for (int64_t n = 0; n < packed.out(); ++n) {
      packed.UnpackRow(n, row.data());
      ASSERT_EQ(std::memcmp(row.data(), all.data() + n * 70, 70 * sizeof(float)), 0) << n;
    }
  }
}

TEST(PackedMatrixTest, RandomIsReproducibleAndHasTheSpreadAskedFor) {
  Threads one(1), three(3);
  for (DType compute : {DType::kF32, DType::kBF16}) {
    PackedMatrix a = *PackedMatrix::Random(301, 203, compute, 9, 0.02f, one.stream());
    PackedMatrix b = *PackedMatrix::Random(301, 203, compute, 9, 0.02f, three.stream());
    PackedMatrix other = *PackedMatrix::Random(301, 203, compute, 10, 0.02f, one.stream());
    ASSERT_EQ(a.bytes(), b.bytes());
    EXPECT_EQ(std::memcmp(a.raw(), b.raw(), a.bytes()), 0);
    EXPECT_NE(std::memcmp(a.raw(), other.raw(), a.bytes()), 0);
    double sum = 0, squares = 0;
    std::vector<float> row(203);
    for (int64_t n = 0; n < 301; ++n) {
      a.UnpackRow(n, row.data());
      for (float v : row) {
        sum += v;
        squares += double{v} * v;
      }
    }
    const double count = 301.0 * 203.0;
    EXPECT_NEAR(sum / count, 0.0, 5 * 0.02 / std::sqrt(count));  // five standard errors
    EXPECT_NEAR(std::sqrt(squares / count), 0.02, 0.02 * 0.02);
  }
}

}  // namespace
}  // namespace weir::kernels
