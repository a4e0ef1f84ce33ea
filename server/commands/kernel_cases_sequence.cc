// Cases that walk along sequences: recurrences, the fused mixer, attention over pages.
#include <algorithm>
#include <cmath>

#include "kernels/attention.h"
#include "kernels/linear_mixer.h"
#include "kernels/recurrence.h"
#include "server/commands/kernel_cases.h"

namespace weir::server {
namespace {

using Copies = std::function<int(double)>;
using Values = BenchMemory::Values;
using kernels::Decay;
using kernels::Update;

// A cell of decay x update, by the name of a model family's mixer.
struct Rule {
  const char* name;
  Decay decay;
  Update update;
};
constexpr Rule kGatedDelta = {"gated_delta", Decay::kScalar, Update::kDelta};
constexpr Rule kKda = {"kda", Decay::kVector, Update::kDelta};
constexpr Rule kGla = {"gla", Decay::kVector, Update::kAdditive};
constexpr Rule kMamba2 = {"mamba2", Decay::kScalar, Update::kAdditive};

struct RecurrenceShape {
  int64_t batch = 1, tokens = 1;  // tokens of each sequence
  int heads = 32, heads_qk = 32;
  int dim = 128;  // K = V
};

double StateBytes(const RecurrenceShape& shape) {
  return 4.0 * static_cast<double>(shape.batch * shape.heads) * shape.dim * shape.dim;
}

// Operations of the token-by-token form.
double RecurrenceFlops(const Rule& rule, const RecurrenceShape& shape) {
  const double state = static_cast<double>(shape.dim) * shape.dim;
  return static_cast<double>(shape.batch * shape.tokens * shape.heads) * state *
         (rule.update == Update::kDelta ? 6 : 4);
}

std::vector<int32_t> Offsets(int64_t sequences, int64_t tokens) {
  std::vector<int32_t> offsets;
  for (int64_t i = 0; i <= sequences; ++i) offsets.push_back(static_cast<int32_t>(i * tokens));
  return offsets;
}
std::vector<int32_t> Range(int64_t begin, int64_t count) {
  std::vector<int32_t> range;
  for (int64_t i = 0; i < count; ++i) range.push_back(static_cast<int32_t>(begin + i));
  return range;
}

struct RecurrenceData {
  explicit RecurrenceData(Stream stream) : memory(stream) {}
  BenchMemory memory;
  std::vector<int32_t> offsets;
  std::vector<kernels::RecurrenceArgs> args;
};

absl::StatusOr<KernelCase> MakeRecurrence(const Rule& rule, const RecurrenceShape& shape,
                                          Stream stream, const Copies& copies) {
  auto data = std::make_shared<RecurrenceData>(stream);
  BenchMemory& memory = data->memory;
  const int64_t tokens = shape.batch * shape.tokens, k = shape.dim;
  const auto width = static_cast<double>(DTypeSize(memory.activation()));
  const double row =
      width * static_cast<double>(k) * (2 * shape.heads_qk + 2 * shape.heads) +
      (rule.decay == Decay::kVector ? 4.0 * static_cast<double>(k) : 4.0) * shape.heads +
      (rule.update == Update::kDelta ? 4.0 * shape.heads : 0);
  KernelCase result;
  result.bytes = 2 * StateBytes(shape) + static_cast<double>(tokens) * row;
  result.flops = RecurrenceFlops(rule, shape);
  result.compute = memory.activation();
  result.copies = copies(result.bytes);
  data->offsets = Offsets(shape.batch, shape.tokens);
  kernels::RecurrenceArgs args;
  args.decay = rule.decay;
  args.update = rule.update;
  args.heads = shape.heads;
  args.scale = 1.0f / std::sqrt(static_cast<float>(k));
  args.offsets = memory.Ints(data->offsets);
  args.host_offsets = data->offsets.data();
  args.fresh = memory.Bytes(std::vector<uint8_t>(static_cast<size_t>(shape.batch), 0));
  args.slot_stride_bytes = 4 * k * k * shape.heads;
  args.state =
      memory.Raw(args.slot_stride_bytes * shape.batch * result.copies, Values::kNormal, 0.1f);
  const float unit = 1.0f / std::sqrt(static_cast<float>(k));
  for (int i = 0; i < result.copies; ++i) {
    args.q = memory.Make(memory.activation(), {tokens, shape.heads_qk, k}, Values::kNormal, unit);
    args.k = memory.Make(memory.activation(), {tokens, shape.heads_qk, k}, Values::kNormal, unit);
    args.v = memory.Make(memory.activation(), {tokens, shape.heads, k}, Values::kNormal);
    args.out = memory.Make(memory.activation(), {tokens, shape.heads, k}, Values::kZero);
    args.g = rule.decay == Decay::kVector
                 ? memory.Make(DType::kF32, {tokens, shape.heads, k}, Values::kNegative, 0.1f)
                 : memory.Make(DType::kF32, {tokens, shape.heads}, Values::kNegative, 0.1f);
    if (rule.update == Update::kDelta) {
      args.beta = memory.Make(DType::kF32, {tokens, shape.heads}, Values::kPositive);
    }
    args.slots = memory.Ints(Range(i * shape.batch, shape.batch));
    data->args.push_back(args);
  }
  if (shape.tokens > 1 && memory.gpu()) {
    void* const scratch =
        memory.Raw(kernels::RecurrenceChunkScratchBytes(args, tokens, shape.batch, stream));
    for (kernels::RecurrenceArgs& each : data->args) each.scratch = scratch;
  }
  RETURN_IF_ERROR(memory.status());
  result.run = [data = data.get(), chunk = shape.tokens > 1](int copy) {
    const kernels::RecurrenceArgs& args = data->args[static_cast<size_t>(copy)];
    if (chunk) {
      kernels::RecurrenceChunk(args, data->memory.stream());
    } else {
      kernels::RecurrenceStep(args, data->memory.stream());
    }
  };
  result.keep = data;
  return result;
}

struct MixerData {
  explicit MixerData(Stream stream) : memory(stream) {}
  BenchMemory memory;
  std::vector<int32_t> offsets;
  std::vector<kernels::LinearMixerArgs> args;
};

// A gated delta mixer between its projections: convolution, norms, gates, state, output norm.
absl::StatusOr<KernelCase> MakeMixer(const RecurrenceShape& shape, Stream stream,
                                     const Copies& copies) {
  constexpr int kTaps = 4;
  auto data = std::make_shared<MixerData>(stream);
  BenchMemory& memory = data->memory;
  const DType type = memory.activation();
  const int64_t tokens = shape.batch * shape.tokens, k = shape.dim;
  const int64_t value = shape.heads * k, channels = 2 * shape.heads_qk * k + value;
  const int64_t total = channels + value + 2 * shape.heads;  // q | k | v | gate | decay | beta
  const int64_t state_bytes = 4 * shape.heads * k * k;
  const int64_t window_bytes = (kTaps - 1) * channels * static_cast<int64_t>(DTypeSize(type));
  const int64_t slot_bytes = state_bytes + (window_bytes + 255) / 256 * 256;
  KernelCase result;
  result.bytes =
      2.0 * static_cast<double>(shape.batch * (state_bytes + window_bytes)) +
      static_cast<double>(tokens * (total + value)) * static_cast<double>(DTypeSize(type));
  result.flops = RecurrenceFlops(kGatedDelta, shape);
  result.compute = memory.activation();
  result.copies = copies(result.bytes);
  data->offsets = Offsets(shape.batch, shape.tokens);
  kernels::LinearMixerArgs args;
  args.decay = Decay::kScalar;
  args.update = Update::kDelta;
  args.heads = args.heads_v = args.heads_g = shape.heads;
  args.heads_q = args.heads_k = shape.heads_qk;
  args.key_dim = args.value_dim = shape.dim;
  args.conv_weight = memory.Make(DType::kF32, {channels, kTaps}, Values::kNormal, 0.5f);
  args.window_dtype = type;
  args.l2_norm = true;
  args.q_scale = 1.0f / std::sqrt(static_cast<float>(k));
  args.decay_bias = memory.Make(DType::kF32, {shape.heads}, Values::kNormal);
  args.exp_a = memory.Make(DType::kF32, {shape.heads}, Values::kPositive, 0.1f);
  args.norm_weight = memory.Make(DType::kF32, {k}, Values::kPositive, 2.0f);
  args.offsets = memory.Ints(data->offsets);
  args.host_offsets = data->offsets.data();
  args.singles = shape.tokens == 1 ? static_cast<int>(shape.batch) : 0;
  args.fresh = memory.Bytes(std::vector<uint8_t>(static_cast<size_t>(shape.batch), 0));
  args.slot_stride_bytes = slot_bytes;
  auto* const slots =
      static_cast<std::byte*>(memory.Raw(slot_bytes * shape.batch * result.copies, Values::kZero));
  RETURN_IF_ERROR(memory.status());
  args.state = slots;
  args.window = slots + state_bytes;
  for (int i = 0; i < result.copies; ++i) {
    const TensorView in = memory.Make(type, {tokens, total}, Values::kNormal);
    RETURN_IF_ERROR(memory.status());
    args.qkv = in.Columns(0, channels);
    args.gate = in.Columns(channels, value);
    args.decay_x = in.Columns(channels + value, shape.heads);
    args.beta_x = in.Columns(channels + value + shape.heads, shape.heads);
    args.out = memory.Make(type, {tokens, value}, Values::kZero);
    args.slots = memory.Ints(Range(i * shape.batch, shape.batch));
    data->args.push_back(args);
  }
  if (!kernels::LinearMixerSupported(args, stream)) {
    return absl::UnimplementedError("the fused mixer does not run this shape here");
  }
  void* const scratch = memory.Raw(
      shape.tokens == 1 ? 0 : kernels::LinearMixerScratchBytes(args, tokens, shape.batch));
  RETURN_IF_ERROR(memory.status());
  for (kernels::LinearMixerArgs& each : data->args) each.scratch = scratch;
  result.run = [data = data.get()](int copy) {
    kernels::LinearMixer(data->args[static_cast<size_t>(copy)], data->memory.stream());
  };
  result.keep = data;
  return result;
}

struct AttentionShape {
  int64_t batch = 1, cached = 0, tokens = 1;
  int heads = 16, kv_heads = 4, dim = 256;
};

struct AttentionData {
  explicit AttentionData(Stream stream) : memory(stream) {}
  BenchMemory memory;
  std::vector<int32_t> offsets, cached;
  std::vector<kernels::AttentionArgs> args;
  std::vector<kernels::PagedKv> kv;
};

absl::StatusOr<KernelCase> MakeAttention(const AttentionShape& shape, Stream stream,
                                         const Copies& copies) {
  constexpr int kPageTokens = 16;
  auto data = std::make_shared<AttentionData>(stream);
  BenchMemory& memory = data->memory;
  const DType type = memory.activation();
  const auto width = static_cast<double>(DTypeSize(type));
  const int64_t tokens = shape.batch * shape.tokens, entries = shape.cached + shape.tokens;
  const int64_t pages = (entries + kPageTokens - 1) / kPageTokens;
  const int64_t row = int64_t{shape.kv_heads} * shape.dim;
  const int64_t q_row = int64_t{shape.heads} * shape.dim;
  KernelCase result;
  result.bytes = static_cast<double>(shape.batch * entries * 2 * row) * 2 +
                 static_cast<double>(tokens) * width * static_cast<double>(3 * q_row + 2 * row);
  const auto n = static_cast<double>(shape.tokens);
  result.flops = 4.0 * static_cast<double>(shape.batch) * static_cast<double>(q_row) *
                 (n * static_cast<double>(shape.cached) + n * (n + 1) / 2);
  result.compute = memory.activation();
  result.copies = copies(result.bytes);
  data->offsets = Offsets(shape.batch, shape.tokens);
  data->cached.assign(static_cast<size_t>(shape.batch), static_cast<int32_t>(shape.cached));
  kernels::AttentionArgs args;
  args.scale = 1.0f / std::sqrt(static_cast<float>(shape.dim));
  args.offsets = memory.Ints(data->offsets);
  args.slots = memory.Ints(Range(0, shape.batch));
  args.cached = memory.Ints(data->cached);
  args.q_norm = memory.Make(DType::kF32, {shape.dim}, Values::kPositive, 2.0f);
  args.k_norm = memory.Make(DType::kF32, {shape.dim}, Values::kPositive, 2.0f);
  std::vector<int32_t> positions;
  for (int64_t i = 0; i < tokens; ++i) {
    positions.push_back(static_cast<int32_t>(shape.cached + i % shape.tokens));
  }
  args.positions = memory.Ints(positions);
  args.inv_freq = memory.Make(DType::kF32, {shape.dim / 8}, Values::kPositive);
  args.max_entries = static_cast<int32_t>(entries);
  if (shape.tokens > 1) {  // else as inside a step's graph
    args.host_offsets = data->offsets.data();
    args.host_cached = data->cached.data();
  }
  args.scratch = memory.Raw(kernels::AttentionScratchBytes(
      shape.heads, shape.kv_heads, shape.dim, tokens, shape.batch, entries, type, stream));
  for (int i = 0; i < result.copies; ++i) {
    args.q = memory.Make(type, {tokens, shape.heads, shape.dim}, Values::kNormal);
    args.k = memory.Make(type, {tokens, shape.kv_heads, shape.dim}, Values::kNormal);
    args.v = memory.Make(type, {tokens, shape.kv_heads, shape.dim}, Values::kNormal);
    args.out = memory.Make(type, {tokens, shape.heads, shape.dim}, Values::kZero);
    args.gate = memory.Make(type, {tokens, q_row}, Values::kNormal);
    kernels::PagedKv kv;
    kv.page_tokens = kPageTokens;
    kv.page_stride_bytes = 2 * 2 * kPageTokens * row;
    kv.base =
        memory.Make(DType::kBF16, {shape.batch * pages, 2 * kPageTokens * row}, Values::kNormal)
            .raw();
    kv.block_table = memory.Ints(Range(0, shape.batch * pages));
    RETURN_IF_ERROR(memory.status());
    kv.block_table = kv.block_table.Reshape({shape.batch, pages});
    data->args.push_back(args);
    data->kv.push_back(kv);
  }
  result.run = [data = data.get()](int copy) {
    const auto i = static_cast<size_t>(copy);
    kernels::PagedAttention(data->args[i], data->kv[i], data->memory.stream());
  };
  result.keep = data;
  return result;
}

void AddRecurrence(const Rule& rule, const RecurrenceShape& shape,
                   std::vector<KernelCaseSpec>* cases) {
  cases->push_back({shape.tokens == 1 ? "recurrence_step" : "recurrence_chunk",
                    rule.name,
                    {{"batch", shape.batch},
                     {"tokens", shape.tokens},
                     {"heads", shape.heads},
                     {"heads_qk", shape.heads_qk},
                     {"dim", shape.dim}},
                    [rule, shape](Stream stream, const Copies& copies) {
                      return MakeRecurrence(rule, shape, stream, copies);
                    }});
}

void AddMixer(const RecurrenceShape& shape, std::vector<KernelCaseSpec>* cases) {
  cases->push_back(
      {"linear_mixer",
       "gated_delta",
       {{"batch", shape.batch},
        {"tokens", shape.tokens},
        {"heads", shape.heads},
        {"heads_qk", shape.heads_qk},
        {"dim", shape.dim}},
       [shape](Stream stream, const Copies& copies) { return MakeMixer(shape, stream, copies); }});
}

void AddAttention(const AttentionShape& shape, std::vector<KernelCaseSpec>* cases) {
  cases->push_back({"paged_attention",
                    shape.tokens == 1 ? "decode" : "prefill",
                    {{"batch", shape.batch},
                     {"tokens", shape.tokens},
                     {"cached", shape.cached},
                     {"heads", shape.heads},
                     {"kv_heads", shape.kv_heads},
                     {"dim", shape.dim}},
                    [shape](Stream stream, const Copies& copies) {
                      return MakeAttention(shape, stream, copies);
                    }});
}

}  // namespace

void AddSequenceCases(bool gpu, std::vector<KernelCaseSpec>* cases) {
  if (!gpu) {
    for (const Rule& rule : {kGatedDelta, kKda, kGla, kMamba2}) {
      AddRecurrence(rule, {.batch = 1, .tokens = 512, .heads = 16, .heads_qk = 16}, cases);
      AddRecurrence(rule, {.batch = 16, .heads = 16, .heads_qk = 16}, cases);
    }
    AddAttention({.batch = 1, .cached = 4095, .heads = 8, .kv_heads = 2}, cases);
    AddAttention({.batch = 1, .tokens = 512, .heads = 8, .kv_heads = 2}, cases);
    return;
  }
  AddRecurrence(kGatedDelta, {.batch = 1, .tokens = 4096, .heads = 32, .heads_qk = 16}, cases);
  AddRecurrence(kGatedDelta, {.batch = 1, .tokens = 16384, .heads = 32, .heads_qk = 16}, cases);
  AddRecurrence(kGatedDelta, {.batch = 8, .tokens = 2048, .heads = 32, .heads_qk = 16}, cases);
  AddRecurrence(kGatedDelta, {.batch = 4, .tokens = 8192, .heads = 64, .heads_qk = 32}, cases);
  for (const Rule& rule : {kKda, kGla, kMamba2}) {
    AddRecurrence(rule, {.batch = 1, .tokens = 16384}, cases);
  }
  for (int64_t batch : {1, 16, 64, 256}) {
    AddRecurrence(kGatedDelta, {.batch = batch, .heads = 32, .heads_qk = 16}, cases);
  }
  for (const Rule& rule : {kKda, kGla, kMamba2}) AddRecurrence(rule, {.batch = 256}, cases);
  for (int64_t batch : {1, 16, 64, 256}) {
    AddMixer({.batch = batch, .heads = 32, .heads_qk = 16}, cases);
  }
  AddMixer({.batch = 1, .tokens = 4096, .heads = 32, .heads_qk = 16}, cases);
  AddAttention({.batch = 1, .cached = 511}, cases);
  AddAttention({.batch = 1, .cached = 16383}, cases);
  AddAttention({.batch = 64, .cached = 4095}, cases);
  AddAttention({.batch = 256, .cached = 511}, cases);
  AddAttention({.batch = 1, .tokens = 4096}, cases);
  AddAttention({.batch = 1, .tokens = 16384}, cases);
}

}  // namespace weir::server
