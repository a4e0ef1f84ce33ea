// Cases whose rows are independent: matrix products, norms, gates, sampling.
#include <algorithm>
#include <cmath>

#include "kernels/device_sampler.h"
#include "kernels/matmul.h"
#include "kernels/norm.h"
#include "kernels/pointwise.h"
#include "server/commands/kernel_cases.h"

namespace weir::server {
namespace {

using Copies = std::function<int(double)>;
using Values = BenchMemory::Values;

struct Matrix {
  const char* name;
  int64_t out, in;
  bool gated = false;
  bool head = false;  // logits: f32, and never more rows than sequences
};
// The products of a decoder of 9B parameters, hidden 4096: projections stacked as they are loaded.
constexpr Matrix kLarge[] = {
    {"linear_in", 12352, 4096}, {"attention_in", 10240, 4096},
    {"mixer_out", 4096, 4096},  {"gate_up", 24576, 4096, true},
    {"down", 4096, 12288},      {"head", 248320, 4096, false, true},
};
constexpr Matrix kSmall[] = {
    {"in", 7168, 1024}, {"gate_up", 7168, 1024, true}, {"down", 1024, 3584}};

struct MatMulData {
  explicit MatMulData(Stream stream) : memory(stream) {}
  BenchMemory memory;
  std::vector<kernels::PackedMatrix> weights;
  TensorView x, y, both;
};

absl::StatusOr<KernelCase> MakeMatMul(const Matrix& matrix, int64_t rows, Stream stream,
                                      const Copies& copies) {
  auto data = std::make_shared<MatMulData>(stream);
  BenchMemory& memory = data->memory;
  const int64_t out = matrix.gated ? matrix.out / 2 : matrix.out;
  const auto width = static_cast<double>(DTypeSize(memory.activation()));
  KernelCase result;
  const double weight_bytes = 2.0 * static_cast<double>(matrix.out * matrix.in);
  const double out_width = matrix.head ? 4 : width;
  result.bytes =
      weight_bytes + static_cast<double>(rows) * (width * static_cast<double>(matrix.in) +
                                                  out_width * static_cast<double>(out));
  result.flops = 2.0 * static_cast<double>(rows) * static_cast<double>(matrix.out * matrix.in);
  result.copies = copies(weight_bytes);
  for (int i = 0; i < result.copies; ++i) {
    ASSIGN_OR_RETURN(kernels::PackedMatrix weight,
                     kernels::PackedMatrix::Random(matrix.out, matrix.in, DType::kBF16,
                                                   static_cast<uint64_t>(i + 1), 0.02f, stream));
    const int64_t tuned[] = {rows};
    kernels::TuneMatMul(weight, tuned, stream);
    data->weights.push_back(std::move(weight));
  }
  data->x = memory.Make(memory.activation(), {rows, matrix.in}, Values::kNormal);
  data->y =
      memory.Make(matrix.head ? DType::kF32 : memory.activation(), {rows, out}, Values::kZero);
  if (matrix.gated) {
    data->both = memory.Make(memory.activation(), {rows, matrix.out}, Values::kZero);
  }
  RETURN_IF_ERROR(memory.status());
  result.run = [data = data.get(), gated = matrix.gated](int copy) {
    const kernels::PackedMatrix& weight = data->weights[static_cast<size_t>(copy)];
    if (gated) {
      kernels::MatMulGated(data->x, weight, {}, kernels::Activation::kSilu, data->both, data->y,
                           data->memory.stream());
    } else {
      kernels::MatMul(data->x, weight, {}, data->y, data->memory.stream());
    }
  };
  result.keep = data;
  return result;
}

struct RowsData {
  explicit RowsData(Stream stream) : memory(stream) {}
  BenchMemory memory;
  std::vector<TensorView> a, b, out;
  TensorView weight;
};

absl::StatusOr<KernelCase> MakeAddRmsNorm(int64_t rows, int64_t n, Stream stream,
                                          const Copies& copies) {
  auto data = std::make_shared<RowsData>(stream);
  BenchMemory& memory = data->memory;
  const auto width = static_cast<double>(DTypeSize(memory.activation()));
  KernelCase result;
  result.bytes = static_cast<double>(rows * n) * (8 + 2 * width) + 4.0 * static_cast<double>(n);
  result.flops = 6.0 * static_cast<double>(rows * n);
  result.compute = DType::kF32;
  result.copies = copies(result.bytes);
  for (int i = 0; i < result.copies; ++i) {
    data->a.push_back(memory.Make(DType::kF32, {rows, n}, Values::kNormal));
    // Small: the residual grows by it at every replay.
    data->b.push_back(memory.Make(memory.activation(), {rows, n}, Values::kNormal, 1e-4f));
    data->out.push_back(memory.Make(memory.activation(), {rows, n}, Values::kZero));
  }
  data->weight = memory.Make(DType::kF32, {n}, Values::kPositive, 2.0f);
  RETURN_IF_ERROR(memory.status());
  result.run = [data = data.get()](int copy) {
    const auto i = static_cast<size_t>(copy);
    kernels::AddRmsNormArgs args;
    args.h = data->a[i];
    args.delta = data->b[i];
    args.weight = data->weight;
    args.out = data->out[i];
    kernels::AddRmsNorm(args, data->memory.stream());
  };
  result.keep = data;
  return result;
}

absl::StatusOr<KernelCase> MakeGateMultiply(int64_t rows, int64_t n, Stream stream,
                                            const Copies& copies) {
  auto data = std::make_shared<RowsData>(stream);
  BenchMemory& memory = data->memory;
  KernelCase result;
  result.bytes =
      static_cast<double>(rows * n) * 3 * static_cast<double>(DTypeSize(memory.activation()));
  result.flops = 4.0 * static_cast<double>(rows * n);
  result.compute = DType::kF32;
  result.copies = copies(result.bytes);
  for (int i = 0; i < result.copies; ++i) {
    // Both halves of one product's rows, as after a stacked projection.
    data->a.push_back(memory.Make(memory.activation(), {rows, 2 * n}, Values::kNormal));
    data->out.push_back(memory.Make(memory.activation(), {rows, n}, Values::kZero));
  }
  RETURN_IF_ERROR(memory.status());
  result.run = [data = data.get(), n](int copy) {
    const TensorView& both = data->a[static_cast<size_t>(copy)];
    kernels::GateMultiply(both.Columns(0, n), both.Columns(n, n), kernels::Activation::kSilu,
                          data->out[static_cast<size_t>(copy)], data->memory.stream());
  };
  result.keep = data;
  return result;
}

struct SamplerData {
  explicit SamplerData(Stream stream) : memory(stream) {}
  BenchMemory memory;
  std::unique_ptr<kernels::DeviceSampler> sampler;
  std::vector<TensorView> logits;
  TensorView fed, tokens;
};

absl::StatusOr<KernelCase> MakeSampler(const std::string& kind, int rows, int vocab, Stream stream,
                                       const Copies& copies) {
  auto data = std::make_shared<SamplerData>(stream);
  BenchMemory& memory = data->memory;
  KernelCase result;
  result.bytes = 4.0 * rows * vocab;
  result.flops = 2.0 * rows * vocab;
  result.compute = DType::kF32;
  result.copies = copies(result.bytes);
  kernels::DeviceSampler::Limits limits;
  limits.max_rows = rows;
  limits.vocab = vocab;
  ASSIGN_OR_RETURN(data->sampler, kernels::DeviceSampler::Make(limits, 1024, stream));
  for (int i = 0; i < result.copies; ++i) {
    data->logits.push_back(memory.Make(DType::kF32, {rows, vocab}, Values::kNormal, 2.0f));
  }
  data->fed = memory.Ints(std::vector<int32_t>(static_cast<size_t>(rows), 1));
  data->tokens = memory.Ints(std::vector<int32_t>(static_cast<size_t>(rows), 0));
  RETURN_IF_ERROR(memory.status());
  std::vector<kernels::SampleRow> described(static_cast<size_t>(rows));
  for (size_t i = 0; i < described.size(); ++i) {
    described[i].seed = i;
    described[i].temperature = kind == "greedy" ? 0.0f : 0.8f;
    if (kind == "top_k_top_p") described[i].top_k = 20, described[i].top_p = 0.95f;
  }
  data->sampler->Describe(0, described, std::vector<uint8_t>(described.size(), 0), stream);
  result.run = [data = data.get()](int copy) {
    data->sampler->Launch(data->logits[static_cast<size_t>(copy)], data->fed, data->tokens,
                          data->memory.stream());
  };
  result.keep = data;
  return result;
}

}  // namespace

void AddDenseCases(bool gpu, std::vector<KernelCaseSpec>* cases) {
  const std::vector<int64_t> rows_large = {1, 16, 64, 256, 4096};
  const std::vector<int64_t> rows_small = {1, 16, 512};
  const std::vector<int64_t>& all_rows = gpu ? rows_large : rows_small;
  const std::vector<Matrix> matrices =
      gpu ? std::vector<Matrix>(std::begin(kLarge), std::end(kLarge))
          : std::vector<Matrix>(std::begin(kSmall), std::end(kSmall));
  for (const Matrix& matrix : matrices) {
    for (int64_t rows : all_rows) {
      if (matrix.head && rows > 256) continue;
      cases->push_back({matrix.gated ? "matmul_gated" : "matmul",
                        matrix.name,
                        {{"rows", rows}, {"out", matrix.out}, {"in", matrix.in}},
                        [matrix, rows](Stream stream, const Copies& copies) {
                          return MakeMatMul(matrix, rows, stream, copies);
                        }});
    }
  }
  const int64_t hidden = gpu ? 4096 : 1024, inner = gpu ? 12288 : 3584;
  for (int64_t rows : all_rows) {
    cases->push_back({"add_rms_norm",
                      "",
                      {{"rows", rows}, {"n", hidden}},
                      [rows, hidden](Stream stream, const Copies& copies) {
                        return MakeAddRmsNorm(rows, hidden, stream, copies);
                      }});
    cases->push_back({"gate_multiply",
                      "",
                      {{"rows", rows}, {"n", inner}},
                      [rows, inner](Stream stream, const Copies& copies) {
                        return MakeGateMultiply(rows, inner, stream, copies);
                      }});
  }
  if (!gpu) return;  // the device's sampler
  constexpr int kVocab = 248320;
  for (const char* kind : {"greedy", "temperature", "top_k_top_p"}) {
    for (int rows : {1, 64, 256}) {
      cases->push_back({"device_sampler",
                        kind,
                        {{"rows", rows}, {"vocab", kVocab}},
                        [kind = std::string(kind), rows](Stream stream, const Copies& copies) {
                          return MakeSampler(kind, rows, kVocab, stream, copies);
                        }});
    }
  }
}

}  // namespace weir::server
