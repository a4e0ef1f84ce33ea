#include "kernels/matmul.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "core/tensor.h"
#include "kernels/pointwise.h"
#include "tests/kernels/dense_test_support.h"
#include "tests/kernels/device_mirror.h"

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

  // Rows [first, first + rows) on the target; the gaps between strided rows must stay poisoned. On
  // a GPU with bf16 activations x is rounded in place.
  std::vector<float> Run(const Target& target, const PackedMatrix& packed, ThreadPool* pool,
                         int64_t first, int64_t rows) {
    DeviceMirror mirror(target.device, target.activations, pool);
    std::vector<float> memory_of_y(rows * y_stride, kPoison);
    const TensorView y = TensorView(memory_of_y.data(), {rows, y_stride}).Columns(0, c.out);
    const TensorView all_x = mirror.Activation(X());
    MatMul(all_x.Rows(first, rows), packed, mirror.Plain(Bias()), mirror.Activation(y),
           mirror.stream());
    mirror.Fetch();
    std::vector<float> result(rows * c.out);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t n = 0; n < c.out; ++n) result[r * c.out + n] = memory_of_y[r * y_stride + n];
      // After the last row of the view nothing is mirrored.
      for (int64_t n = c.out; n < y_stride && r + 1 < rows; ++n) {
        EXPECT_TRUE(std::isnan(memory_of_y[r * y_stride + n])) << "wrote past row " << r;
      }
    }
    return result;
  }
  std::vector<float> Run(const PackedMatrix& packed, Stream stream) {
    return Run({}, packed, stream.pool, 0, c.rows);
  }

  Case c;
  std::vector<char> memory;
  std::vector<float> w, x, bias;  // w as kept: rounded to the compute type
  int64_t x_stride = 0, y_stride = 0;
};

// Instruction sets of the CPU; a GPU has one way.
std::vector<SimdLevel> LevelsOf(const Target& target) {
  return target.device == Device::kCpu ? MachineLevels()
                                       : std::vector<SimdLevel>{SimdLevel::kAvx512Bf16};
}

class MatMulOnTest : public ::testing::TestWithParam<Target> {
 protected:
  // Packed where the target is, and done.
  PackedMatrix Pack(Problem* problem) {
    DeviceMirror mirror(GetParam().device, GetParam().activations, &pool_);
    PackedMatrix packed =
        *PackedMatrix::Pack(problem->Weight(), problem->c.compute, mirror.stream());
    mirror.Fetch();
    return packed;
  }

  ThreadPool pool_{2};
};
INSTANTIATE_TEST_SUITE_P(Targets, MatMulOnTest, ::testing::ValuesIn(Targets()),
                         [](const auto& target) { return target.param.name(); });
#define WEIR_NEEDS_TARGET() \
  if (GetParam().device == Device::kCuda) WEIR_NEEDS_GPU()

// Element (row, column) of the product in doubles.
struct Element {
  double value = 0;
  double terms = 0;    // the sum of the magnitudes of its terms
  double rounded = 0;  // of what is rounded to y's type: before and after the bias is added
};
Element Expected(const Problem& problem, int64_t r, int64_t n) {
  const Case& c = problem.c;
  const double bias = c.bias ? problem.bias[n] : 0.0;
  double sum = bias, magnitude = std::fabs(sum);
  for (int64_t i = 0; i < c.in; ++i) {
    const double term =
        double{RoundTo(c.compute, problem.x[r * problem.x_stride + i])} * problem.w[n * c.in + i];
    sum += term;
    magnitude += std::fabs(term);
  }
  return {sum, magnitude, std::fabs(sum) + (c.bias ? std::fabs(sum - bias) : 0.0)};
}

TEST_P(MatMulOnTest, AgreesWithDoubleLoops) {
  WEIR_NEEDS_TARGET();
  for (const Case& c : Cases()) {
    SCOPED_TRACE(Name(c));
    Problem problem(c);
    const PackedMatrix packed = Pack(&problem);
    for (SimdLevel level : LevelsOf(GetParam())) {
      SCOPED_TRACE(SimdLevelName(level));
      AtLevel at(level);
      const std::vector<float> y = problem.Run(GetParam(), packed, &pool_, 0, c.rows);
      for (int64_t r = 0; r < c.rows; ++r) {
        for (int64_t n = 0; n < c.out; ++n) {
          const auto [sum, magnitude, rounded] = Expected(problem, r, n);
          // A chain of n multiply-adds rounds n times (2 n without FMA), each time at most kEps of
          // a partial sum, which is at most the sum of magnitudes; the bias adds one more, y's type
          // another.
          const double tolerance =
              (2.0 * c.in + 1) * kEps * magnitude + ActivationEps(GetParam()) * rounded;
          ASSERT_NEAR(y[r * c.out + n], sum, tolerance) << "row " << r << " column " << n;
        }
      }
    }
  }
}

TEST_P(MatMulOnTest, ARowIsTheSameAloneAndInAnyBatch) {
  WEIR_NEEDS_TARGET();
  const bool gpu = GetParam().device == Device::kCuda;
  for (DType compute : {DType::kF32, DType::kBF16}) {
    // The last: several blocks of depth; on the GPU, several blocks of threads share it.
    for (int64_t in : {int64_t{37}, int64_t{512}, int64_t{gpu ? 4200 : 4203}}) {
      const Case c{gpu ? kStreamRows : 67, in, 273, compute, DType::kF32, true, false};
      SCOPED_TRACE(Name(c));
      Problem problem(c);
      const PackedMatrix packed = Pack(&problem);
      for (SimdLevel level : LevelsOf(GetParam())) {
        SCOPED_TRACE(SimdLevelName(level));
        AtLevel at(level);
        const std::vector<float> all = problem.Run(GetParam(), packed, &pool_, 0, c.rows);
        int64_t begin = 0;
        for (int64_t count = 1; begin < c.rows; begin += count, count = count % 19 + 1) {
          const int64_t rows = std::min(count, c.rows - begin);
          const std::vector<float> y = problem.Run(GetParam(), packed, &pool_, begin, rows);
          ASSERT_EQ(std::memcmp(y.data(), all.data() + begin * c.out, y.size() * sizeof(float)), 0)
              << rows << " rows from " << begin;
        }
      }
    }
  }
}

TEST(MatMulTest, ARowIsTheSameOnAnyNumberOfThreads) {
  Threads one(1), two(2), three(3);
  for (DType compute : {DType::kF32, DType::kBF16}) {
    for (int64_t in : {37, 512, 4203}) {
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
      }
    }
  }
}

TEST_P(MatMulOnTest, EveryBatchSizeGivesTheRowsOfSizeOne) {
  WEIR_NEEDS_TARGET();
  const bool gpu = GetParam().device == Device::kCuda;
  for (DType compute : {DType::kF32, DType::kBF16}) {
    const Case c{gpu ? kStreamRows : 40, gpu ? 2056 : 65, 81, compute};
    Problem problem(c);
    const PackedMatrix packed = Pack(&problem);
    for (SimdLevel level : LevelsOf(GetParam())) {
      SCOPED_TRACE(SimdLevelName(level));
      AtLevel at(level);
      std::vector<float> single;
      for (int64_t r = 0; r < c.rows; ++r) {
        const std::vector<float> y = problem.Run(GetParam(), packed, &pool_, r, 1);
        single.insert(single.end(), y.begin(), y.end());
      }
      for (int64_t rows = 2; rows <= c.rows; ++rows) {
        const std::vector<float> y = problem.Run(GetParam(), packed, &pool_, 0, rows);
        ASSERT_EQ(std::memcmp(y.data(), single.data(), y.size() * sizeof(float)), 0) << rows;
      }
    }
  }
}

double Activated(Activation activation, double x) {
  switch (activation) {
    case Activation::kSilu:
      return x / (1.0 + std::exp(-x));
    case Activation::kGelu:
      return 0.5 * x * (1.0 + std::erf(x / std::sqrt(2.0)));
    case Activation::kRelu2:
      return x > 0 ? x * x : 0.0;
    default:
      return x;
  }
}

TEST_P(MatMulOnTest, GatedIsTheProductOfTheHalves) {
  WEIR_NEEDS_TARGET();
  for (DType compute : {DType::kF32, DType::kBF16}) {
    for (Activation activation :
         {Activation::kNone, Activation::kSilu, Activation::kGelu, Activation::kRelu2}) {
      for (int64_t n : {5, 80, 333}) {
        for (int64_t rows : {1, 20, 70}) {
          const Case c{rows, 264, 2 * n, compute, DType::kBF16, n == 80};
          SCOPED_TRACE(Name(c));
          Problem problem(c);
          for (float& x : problem.x) x *= 0.1f;
          const PackedMatrix packed = Pack(&problem);
          DeviceMirror mirror(GetParam().device, GetParam().activations, &pool_);
          std::vector<float> both(rows * 2 * n, kPoison), y(rows * (n + 3), kPoison);
          MatMulGated(mirror.Activation(problem.X()), packed, mirror.Plain(problem.Bias()),
                      activation, mirror.Activation(TensorView(both.data(), {rows, 2 * n})),
                      mirror.Activation(TensorView(y.data(), {rows, n + 3}).Columns(0, n)),
                      mirror.stream());
          mirror.Fetch();
          for (int64_t r = 0; r < rows; ++r) {
            for (int64_t i = 0; i < n; ++i) {
              const auto [gate, gate_magnitude, gate_rounded] = Expected(problem, r, i);
              const auto [up, up_magnitude, up_rounded] = Expected(problem, r, n + i);
              const double act = Activated(activation, gate);
              // Errors of the two products pass through the activation, whose slope is at most 2
              // (|x| + 1); both halves and y are rounded to the activations' type.
              const double eps = ActivationEps(GetParam());
              const double slope = 2.0 * (std::fabs(gate) + 1.0);
              const double sum_eps = (2.0 * c.in + 1) * kEps;
              const double tolerance =
                  std::fabs(up) * slope * (sum_eps * gate_magnitude + eps * gate_rounded) +
                  (std::fabs(act) + 1e-5) * (sum_eps * up_magnitude + eps * up_rounded) +
                  (eps + 1e-5) * std::fabs(act * up) + 1e-7;
              ASSERT_NEAR(y[r * (n + 3) + i], act * up, tolerance) << "row " << r << " " << i;
            }
            if (r + 1 < rows) {
              ASSERT_TRUE(std::isnan(y[r * (n + 3) + n]));
            }
          }
        }
      }
    }
  }
}

// Two blocks of a model joined: the first's last product adds to the stream h, the second's first
// one divides by root mean squares.
struct JoinedBlocks {
  static constexpr float kScale = 0.75f, kNormEps = 1e-5f;

  JoinedBlocks(int64_t rows, int64_t in, int64_t n, int64_t out)
      : end({rows, in, n, DType::kBF16, DType::kBF16, true}),
        begin({rows, n, out, DType::kBF16, DType::kBF16, true}),
        h(RandomFloats(rows * n, 3)),
        weight(RandomFloats(n, 4)) {
    for (float& x : end.x) x = RoundTo(DType::kBF16, x);
  }

  // Rows [first, first + rows) of the stream, of what lies between the blocks, and of the result.
  struct Results {
    std::vector<float> h, x, y;
  };
  Results Run(const PackedMatrix& w_end, const PackedMatrix& w_begin, bool gated, int64_t first,
              int64_t rows) {
    ThreadPool pool(1);
    DeviceMirror mirror(Device::kCuda, DType::kBF16, &pool);
    const int64_t n = end.c.out, width = gated ? begin.c.out / 2 : begin.c.out;
    Results r{std::vector<float>(h.begin() + first * n, h.begin() + (first + rows) * n),
              std::vector<float>(rows * n, kPoison), std::vector<float>(rows * width, kPoison)};
    const int64_t parts = SquaresParts(n);
    TensorView squares(static_cast<float*>(mirror.Scratch(parts * kJoinRows * 4)),
                       {parts, kJoinRows});
    MatMulOutput output = mirror.Activation(TensorView(r.x.data(), {rows, n}));
    output.h = mirror.Plain(TensorView(r.h.data(), {rows, n}));
    output.scale = kScale;
    output.norm_weight = mirror.Plain(TensorView(weight.data(), {n}));
    output.squares = &squares;
    MatMul(mirror.Activation(end.X()).Rows(first, rows), w_end, mirror.Plain(end.Bias()), output,
           mirror.stream());
    MatMulInput input = output.y;
    input.squares = squares;
    input.eps = kNormEps;
    const TensorView y = mirror.Plain(TensorView(r.y.data(), {rows, width}));
    if (gated) {
      std::vector<float> both(rows * 2 * width, kPoison);
      MatMulGated(input, w_begin, mirror.Plain(begin.Bias()), Activation::kNone,
                  mirror.Activation(TensorView(both.data(), {rows, 2 * width})), y,
                  mirror.stream());
      mirror.Fetch();
    } else {
      MatMul(input, w_begin, mirror.Plain(begin.Bias()), y, mirror.stream());
      mirror.Fetch();
    }
    return r;
  }

  void Expect(const Results& got, bool gated) {
    const int64_t n = end.c.out, out = begin.c.out, width = gated ? out / 2 : out;
    for (int64_t r = 0; r < end.c.rows; ++r) {
      double squares = 0.0;
      for (int64_t i = 0; i < n; ++i) {
        const auto [sum, magnitude, rounded] = Expected(end, r, i);
        const double want = h[r * n + i] + kScale * sum, at = got.h[r * n + i];
        ASSERT_NEAR(at, want, kEps * ((2.0 * end.c.in + 1) * magnitude + std::fabs(want))) << i;
        ASSERT_EQ(got.x[r * n + i], RoundTo(DType::kBF16, got.h[r * n + i] * weight[i])) << i;
        squares += at * at;
        begin.x[r * n + i] = got.x[r * n + i];
      }
      const double root = std::sqrt(squares / static_cast<double>(n) + kNormEps);
      for (int64_t i = 0; i < width; ++i) {
        double want = 1.0, tolerance = 0.0;
        for (int64_t column = i; column < out; column += width) {
          const auto [sum, magnitude, rounded] = Expected(begin, r, column);
          const double bias = begin.bias[column], value = (sum - bias) / root + bias;
          const double error = (3.0 * n + 4) * kEps * (magnitude / root + std::fabs(bias));
          tolerance = std::fabs(want) * error + tolerance * (std::fabs(value) + error);
          want *= value;
        }
        ASSERT_NEAR(got.y[r * width + i], want, tolerance + kEps * std::fabs(want)) << i;
      }
    }
  }

  Problem end, begin;
  std::vector<float> h, weight;
};

TEST(MatMulTest, GpuJoinsBlocks) {
  WEIR_NEEDS_GPU();
  const int64_t sizes[][4] = {{1, 264, 64, 80},
                              {7, 1000, 1032, 96},
                              {20, 72, 2312, 40},
                              {kStreamRows, 512, 520, 48},
                              {kJoinRows, 264, 1032, 208}};
  for (const auto& [rows, in, n, out] : sizes) {
    JoinedBlocks blocks(rows, in, n, out);
    ThreadPool pool(1);
    DeviceMirror mirror(Device::kCuda, DType::kBF16, &pool);
    const PackedMatrix w_end =
        *PackedMatrix::Pack(blocks.end.Weight(), DType::kBF16, mirror.stream());
    const PackedMatrix w_begin =
        *PackedMatrix::Pack(blocks.begin.Weight(), DType::kBF16, mirror.stream());
    mirror.Fetch();
    if (!MatMulJoins(w_end, DType::kBF16, rows, mirror.stream())) {
      GTEST_SKIP() << "blocks are joined on compute capability 9.0";
    }
    for (const bool gated : {false, true}) {
      SCOPED_TRACE(Name(blocks.begin.c) + (gated ? " gated" : ""));
      const JoinedBlocks::Results all = blocks.Run(w_end, w_begin, gated, 0, rows);
      blocks.Expect(all, gated);
      if (HasFatalFailure()) return;
      for (int64_t r = 0; r < rows; r += 5) {
        const JoinedBlocks::Results one = blocks.Run(w_end, w_begin, gated, r, 1);
        for (auto part : {&JoinedBlocks::Results::h, &JoinedBlocks::Results::y}) {
          const std::vector<float>&few = one.*part, &many = all.*part;
          ASSERT_EQ(std::memcmp(few.data(), many.data() + r * few.size(), few.size() * 4), 0) << r;
        }
      }
    }
  }
}

// On a GPU x and y choose their types apart: the head's logits are f32.
TEST(MatMulTest, GpuTakesEveryPairOfTypes) {
  WEIR_NEEDS_GPU();
  ThreadPool pool(1);
  for (DType compute : {DType::kF32, DType::kBF16}) {
    for (int64_t rows : {3, 90}) {
      const Case c{rows, 136, 72, compute, DType::kF32, true};
      SCOPED_TRACE(Name(c));
      Problem problem(c);
      for (float& x : problem.x) x = RoundTo(DType::kBF16, x);
      for (DType x_type : {DType::kF32, DType::kBF16}) {
        for (DType y_type : {DType::kF32, DType::kBF16}) {
          DeviceMirror from(Device::kCuda, x_type, &pool), to(Device::kCuda, y_type, &pool);
          const PackedMatrix packed = *PackedMatrix::Pack(problem.Weight(), compute, from.stream());
          std::vector<float> y(rows * c.out, kPoison);
          const TensorView out = to.Activation(TensorView(y.data(), {rows, c.out}));
          MatMul(from.Activation(problem.X()), packed, from.Plain(problem.Bias()), out,
                 from.stream());
          from.Fetch();
          to.Fetch();
          const double eps = y_type == DType::kBF16 ? 0x1p-8 : 0x1p-24;
          for (int64_t r = 0; r < rows; ++r) {
            for (int64_t n = 0; n < c.out; ++n) {
              const auto [sum, magnitude, rounded] = Expected(problem, r, n);
              ASSERT_NEAR(y[r * c.out + n], sum,
                          (2.0 * c.in + 1) * kEps * magnitude + eps * rounded)
                  << DTypeName(x_type) << " to " << DTypeName(y_type) << ", " << r << " " << n;
            }
          }
        }
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

// What lies on the device, as f32.
std::vector<float> FetchTable(const PackedMatrix& packed) {
  std::vector<std::byte> bytes(packed.table().bytes());
  const auto stream = cuda::OwnedStream::Make();
  cuda::Copy(bytes.data(), packed.raw(), bytes.size(), stream.get());
  cuda::Synchronize(stream.get());
  std::vector<float> values(packed.out() * packed.in());
  for (size_t i = 0; i < values.size(); ++i) {
    if (packed.compute() == DType::kBF16) {
      values[i] = ToFloat(reinterpret_cast<const BFloat16*>(bytes.data())[i]);
    } else {
      values[i] = reinterpret_cast<const float*>(bytes.data())[i];
    }
  }
  return values;
}

TEST(PackedMatrixTest, GpuHoldsTheRowsAsStored) {
  WEIR_NEEDS_GPU();
  const auto stream = cuda::OwnedStream::Make();
  for (const Case& c : Cases()) {
    SCOPED_TRACE(Name(c));
    Problem problem(c);
    const PackedMatrix packed = *PackedMatrix::Pack(problem.Weight(), c.compute, stream.get());
    cuda::Synchronize(stream.get());
    EXPECT_TRUE(SameBits(FetchTable(packed), problem.w));
  }
}

// Larger than the blocks it travels in, from rows with gaps, stacked, every stored type.
TEST(PackedMatrixTest, GpuTakesLargeStacksWithGaps) {
  WEIR_NEEDS_GPU();
  const auto stream = cuda::OwnedStream::Make();
  const int64_t in = 1536, rows = 2500;
  std::vector<float> f32 = RandomFloats(rows * (in + 5), 3);
  std::vector<BFloat16> bf16(rows * in);
  std::vector<Float16> f16(rows * in);
  for (size_t i = 0; i < bf16.size(); ++i) {
    bf16[i] = ToBFloat16(f32[i]);
    f16[i] = {static_cast<uint16_t>(i * 7 % 0x7c00)};
  }
  const TensorView parts[] = {TensorView(bf16.data(), {rows, in}),
                              TensorView(f32.data(), {rows, in + 5}).Columns(2, in),
                              TensorView(f16.data(), {rows, in})};
  for (DType compute : {DType::kF32, DType::kBF16}) {
    const PackedMatrix packed = *PackedMatrix::PackStacked(parts, 3, compute, stream.get());
    cuda::Synchronize(stream.get());
    ASSERT_EQ(packed.out(), 3 * rows);
    const std::vector<float> values = FetchTable(packed);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < in; ++i) {
        const int64_t at = r * in + i;
        ASSERT_EQ(values[at], ToFloat(bf16[at])) << at;
        ASSERT_EQ(values[rows * in + at], RoundTo(compute, f32[r * (in + 5) + 2 + i])) << at;
        ASSERT_EQ(values[2 * rows * in + at], RoundTo(compute, ToFloat(f16[at]))) << at;
      }
    }
  }
}

TEST(PackedMatrixTest, RandomIsTheSameOnBothDevices) {
  WEIR_NEEDS_GPU();
  Threads one(1);
  const auto stream = cuda::OwnedStream::Make();
  for (DType compute : {DType::kF32, DType::kBF16}) {
    const PackedMatrix cpu = *PackedMatrix::Random(301, 203, compute, 9, 0.02f, one.stream());
    const PackedMatrix gpu = *PackedMatrix::Random(301, 203, compute, 9, 0.02f, stream.get());
    cuda::Synchronize(stream.get());
    const std::vector<float> values = FetchTable(gpu);
    std::vector<float> row(203);
    for (int64_t n = 0; n < 301; ++n) {
      cpu.UnpackRow(n, row.data());
      ASSERT_EQ(std::memcmp(row.data(), values.data() + n * 203, 203 * sizeof(float)), 0) << n;
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
