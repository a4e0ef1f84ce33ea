// Glue of the fused mixer: singles go through one kernel; longer runs are prepared (convolution,
// norms, gates), run through the chunk form and normed.
#include "kernels/cuda/linear_mixer.h"

#include <limits>

#include "core/check.h"
#include "kernels/cuda/linear_mixer_step.h"
#include "kernels/cuda/ops.h"

namespace weir::kernels::gpu {
namespace {

RowsOf Rows(const TensorView& x) {
  if (!x.defined()) return {};
  return {x.raw(), x.row_stride(), x.dtype() == DType::kBF16};
}

const float* Floats(const TensorView& x) { return x.defined() ? x.data<float>() : nullptr; }

int64_t Width(const LinearMixerArgs& a) {
  return int64_t{a.heads_q + a.heads_k} * a.key_dim + int64_t{a.heads_v} * a.value_dim;
}

// q, k, v as [tokens, heads, dim] views of the projection.
TensorView Heads(const LinearMixerArgs& a, int64_t column, int heads, int dim) {
  return a.qkv.Columns(column, int64_t{heads} * dim).Reshape({a.qkv.size(0), heads, dim});
}

void DescribeDecay(const LinearMixerArgs& a, MixerStep* step) {
  step->decay = a.decay;
  if (a.decay == Decay::kNone) return;
  if (a.decay == Decay::kScalar && a.fixed_decay.defined()) {
    step->decay_x = {a.fixed_decay.raw(), 0, false};
    step->decay_given = true;
    return;
  }
  step->decay_x = Rows(a.decay_x);
  step->decay_form = a.decay_form;
  step->decay_bias = Floats(a.decay_bias);
  step->exp_a = Floats(a.exp_a);
  step->inverse_normalizer = 1.0f / a.normalizer;
  step->clamp_min = a.has_clamp ? a.clamp_min : -std::numeric_limits<float>::infinity();
  step->lower_bound = a.lower_bound;
  if (a.decay == Decay::kVector) step->g_group = a.heads / a.heads_g;
}

// REQUIRES: the head counts divide `heads`.
MixerStep Describe(const LinearMixerArgs& a) {
  MixerStep step;
  step.sequences = a.singles;
  step.slots = a.slots.defined() ? a.slots.data<int32_t>() : nullptr;
  step.fresh = a.fresh.defined() ? a.fresh.data<uint8_t>() : nullptr;
  step.state = static_cast<char*>(a.state);
  step.slot_stride_bytes = a.slot_stride_bytes;
  step.heads = a.heads;
  step.dim_k = a.key_dim;
  step.dim_v = a.value_dim;
  step.q_group = a.heads / a.heads_q;
  step.k_group = a.heads / a.heads_k;
  step.v_group = a.heads / a.heads_v;
  const int64_t element = DTypeSize(a.qkv.dtype());
  const int64_t q = int64_t{a.heads_q} * a.key_dim, k = int64_t{a.heads_k} * a.key_dim;
  step.q = step.k = step.v = {a.qkv.raw(), a.qkv.row_stride(), a.qkv.dtype() == DType::kBF16};
  if (a.qkv.defined()) {
    step.k.data = static_cast<const char*>(a.qkv.raw()) + q * element;
    step.v.data = static_cast<const char*>(a.qkv.raw()) + (q + k) * element;
  }
  step.silu = a.activation == Activation::kSilu;
  step.l2_norm = a.l2_norm;
  step.l2_eps = a.l2_eps;
  step.q_scale = a.q_scale;
  step.delta = a.update == Update::kDelta;
  if (a.conv_weight.defined()) {
    step.width = static_cast<int>(a.conv_weight.size(1));
    step.conv_weight = a.conv_weight.data<float>();
    step.conv_bias = Floats(a.conv_bias);
    step.window = static_cast<char*>(a.window);
  }
  DescribeDecay(a, &step);
  step.beta = Rows(a.beta_x);
  step.beta_scale = a.beta_scale;
  step.norm = true;
  step.gate = Rows(a.gate);
  step.gate_sigmoid = a.gate_activation == Activation::kSigmoid;
  step.norm_weight = Floats(a.norm_weight);
  step.norm_eps = a.norm_eps;
  if (a.out.defined()) {
    step.out = a.out.raw();
    step.out_stride = a.out.row_stride();
  }
  return step;
}

// Hands out scratch; with a null base it only counts.
class Room {
 public:
  explicit Room(void* base) : base_(static_cast<std::byte*>(base)) {}
  TensorView Take(DType dtype, int64_t tokens, int64_t heads, int64_t dim) {
    void* at = TakeBytes(tokens * heads * dim * DTypeSize(dtype));
    return TensorView(at, dtype, {tokens, heads, dim});
  }
  void* TakeBytes(int64_t bytes) {
    constexpr int64_t kAlignment = 256;
    void* at = base_ == nullptr ? nullptr : base_ + used_;
    used_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return at;
  }
  int64_t used() const { return used_; }

 private:
  std::byte* base_;
  int64_t used_ = 0;
};

struct RunsPlan {
  PreparedRuns prepared;
  RecurrenceArgs recurrence;
};

// Shapes for `tokens` tokens, with pointers where `room` and `a` have them.
RunsPlan PlanRuns(const LinearMixerArgs& a, int64_t tokens, int64_t sequences, Room* room) {
  RunsPlan plan;
  RecurrenceArgs& r = plan.recurrence;
  r.decay = a.decay;
  r.update = a.update;
  r.scale = a.q_scale;
  r.heads = a.heads;
  const DType dtype = a.qkv.dtype();
  const bool as_it_is = !a.conv_weight.defined() && a.activation == Activation::kNone && !a.l2_norm;
  if (as_it_is && a.qkv.defined()) {
    const int64_t q = int64_t{a.heads_q} * a.key_dim, k = int64_t{a.heads_k} * a.key_dim;
    r.q = Heads(a, 0, a.heads_q, a.key_dim);
    r.k = Heads(a, q, a.heads_k, a.key_dim);
    r.v = Heads(a, q + k, a.heads_v, a.value_dim);
  } else {
    r.q = plan.prepared.q = room->Take(dtype, tokens, a.heads_q, a.key_dim);
    r.k = plan.prepared.k = room->Take(dtype, tokens, a.heads_k, a.key_dim);
    r.v = plan.prepared.v = room->Take(dtype, tokens, a.heads_v, a.value_dim);
  }
  if (a.decay == Decay::kVector) {
    r.g = plan.prepared.g = room->Take(DType::kF32, tokens, a.heads_g, a.key_dim);
  } else if (a.decay == Decay::kScalar && a.fixed_decay.defined()) {
    r.g = a.fixed_decay.Reshape({1, a.heads});
  } else if (a.decay == Decay::kScalar) {
    r.g = plan.prepared.g = room->Take(DType::kF32, tokens, 1, a.heads).Reshape({tokens, a.heads});
  }
  if (a.update == Update::kDelta) {
    r.beta = plan.prepared.beta =
        room->Take(DType::kF32, tokens, 1, a.heads).Reshape({tokens, a.heads});
  }
  r.out = a.out.defined() ? a.out.Reshape({tokens, a.heads, a.value_dim})
                          : TensorView(nullptr, dtype, {tokens, a.heads, a.value_dim});
  r.scratch = room->TakeBytes(gpu::RecurrenceChunkScratchBytes(r, tokens, sequences));
  return plan;
}

void Runs(const LinearMixerArgs& a, Stream stream) {
  const int64_t sequences = a.slots.size(0), first = a.singles, count = sequences - first;
  WEIR_CHECK(a.host_offsets != nullptr && a.scratch != nullptr) << "runs without a plan";
  const int64_t begin = a.host_offsets[first], end = a.host_offsets[sequences];
  if (begin == end) return;
  Room room(a.scratch);
  RunsPlan plan = PlanRuns(a, a.qkv.size(0), sequences, &room);
  PrepareRuns(a, static_cast<int>(first), plan.prepared, stream);
  RecurrenceArgs& r = plan.recurrence;
  r.offsets = a.offsets.Rows(first, count + 1);
  r.host_offsets = a.host_offsets + first;
  r.slots = a.slots.Rows(first, count);
  r.fresh = a.fresh.Rows(first, count);
  r.state = a.state;
  r.slot_stride_bytes = a.slot_stride_bytes;
  gpu::RecurrenceChunk(r, stream);
  GatedRmsNormArgs norm;
  norm.x = norm.out = a.out.Rows(begin, end - begin);
  if (a.gate.defined()) norm.gate = a.gate.Rows(begin, end - begin);
  norm.activation = a.gate_activation;
  norm.weight = a.norm_weight;
  norm.group = a.value_dim;
  norm.eps = a.norm_eps;
  gpu::GatedRmsNorm(norm, stream);
}

}  // namespace

bool LinearMixerSupported(const LinearMixerArgs& a) {
  const auto divides = [&](int heads) { return heads > 0 && a.heads % heads == 0; };
  const auto usual = [](int dim) { return dim == 64 || dim == 128 || dim == 256; };
  if (a.heads <= 0 || !divides(a.heads_q) || !divides(a.heads_k) || !divides(a.heads_v)) {
    return false;
  }
  if (a.decay == Decay::kVector && !divides(a.heads_g)) return false;
  if (a.activation != Activation::kNone && a.activation != Activation::kSilu) return false;
  if (a.gate_activation != Activation::kSilu && a.gate_activation != Activation::kSigmoid) {
    return false;
  }
  if (a.conv_weight.defined() && a.window_dtype != a.qkv.dtype()) return false;
  return usual(a.key_dim) && usual(a.value_dim) && MixerStepSupported(Describe(a));
}

int64_t LinearMixerScratchBytes(const LinearMixerArgs& args, int64_t tokens, int64_t sequences) {
  LinearMixerArgs shapes = args;  // only what does not depend on the batch
  shapes.qkv = TensorView(nullptr, args.qkv.dtype(), {tokens, Width(args)});
  shapes.out = {};
  Room room(nullptr);
  PlanRuns(shapes, tokens, sequences, &room);
  return room.used();
}

void LinearMixer(const LinearMixerArgs& args, Stream stream) {
  WEIR_CHECK(LinearMixerSupported(args)) << "linear mixer of " << args.qkv.ToString();
  const int64_t tokens = args.qkv.size(0);
  WEIR_CHECK(args.qkv.size(1) == Width(args) && args.out.size(0) == tokens &&
             args.out.size(1) == int64_t{args.heads} * args.value_dim &&
             args.out.dtype() == args.qkv.dtype() && args.singles <= args.slots.size(0))
      << args.qkv.ToString() << " to " << args.out.ToString();
  if (tokens == 0) return;
  if (args.singles > 0) RunMixerStep(Describe(args), stream);
  if (args.singles < args.slots.size(0)) Runs(args, stream);
}

}  // namespace weir::kernels::gpu
