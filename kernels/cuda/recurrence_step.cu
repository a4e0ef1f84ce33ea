// The decode form for any K, V and head counts: a warp takes a row of the state at a time. Common
// shapes on sm_90 take the mixer's step with everything but the recurrence switched off.
#include "core/check.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/linear_mixer_step.h"
#include "kernels/cuda/ops.h"

namespace weir::kernels::gpu {
namespace {

constexpr int kWarps = 4, kRowsPerBlock = 16;

template <typename T>
struct StepParams {
  const T *q, *k, *v;
  int64_t q_stride, k_stride, v_stride;
  int q_group, k_group, v_group, g_group;  // value heads that share one head of each
  const float* g;
  int64_t g_stride;  // 0: fixed per head
  Decay decay;
  const float* beta;  // nullptr: additive
  int64_t beta_stride;
  T* out;
  int64_t out_stride;
  float scale;
  int dim_k, dim_v;
  const int32_t *offsets, *slots;
  const uint8_t* fresh;
  char* state;
  int64_t slot_stride_bytes;
};

// grid: sequences x heads x blocks of rows. Shared: k, q and the decays, K floats each.
template <typename T>
__global__ void __launch_bounds__(kWarps* kWarp) StepRows(const StepParams<T> p) {
  extern __shared__ float shared[];
  float *k = shared, *q = k + p.dim_k, *decay = q + p.dim_k;
  PdlLaunchDependents();
  PdlWait();
  const int s = static_cast<int>(blockIdx.x), h = static_cast<int>(blockIdx.y);
  const int64_t token = p.offsets[s];
  if (p.offsets[s + 1] == token) return;
  const int slot = p.slots[s];
  const int first = static_cast<int>(blockIdx.z) * kRowsPerBlock;
  const int last = min(first + kRowsPerBlock, p.dim_v);
  T* out = p.out + token * p.out_stride + int64_t{h} * p.dim_v;
  if (slot < 0) {
    for (int row = first + static_cast<int>(threadIdx.x); row < last; row += kWarps * kWarp) {
      Store(out + row, 0.0f);
    }
    return;
  }
  for (int i = static_cast<int>(threadIdx.x); i < p.dim_k; i += kWarps * kWarp) {
    k[i] = Load(p.k + token * p.k_stride + h / p.k_group * p.dim_k + i);
    q[i] = Load(p.q + token * p.q_stride + h / p.q_group * p.dim_k + i);
    float log_decay = 0.0f;
    if (p.decay == Decay::kScalar) log_decay = p.g[token * p.g_stride + h];
    if (p.decay == Decay::kVector) {
      log_decay = p.g[token * p.g_stride + h / p.g_group * p.dim_k + i];
    }
    decay[i] = expf(log_decay);
  }
  __syncthreads();
  const bool fresh = p.fresh[s] != 0;
  const float beta = p.beta != nullptr ? p.beta[token * p.beta_stride + h] : 0.0f;
  const T* v = p.v + token * p.v_stride + h / p.v_group * p.dim_v;
  float* state = reinterpret_cast<float*>(p.state + slot * p.slot_stride_bytes) +
                 int64_t{h} * p.dim_v * p.dim_k;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int row = first + static_cast<int>(threadIdx.x) / kWarp; row < last; row += kWarps) {
    float* at = state + int64_t{row} * p.dim_k;
    float write = Load(v + row);
    if (p.beta != nullptr) {
      float seen = 0.0f;
      for (int i = lane; i < p.dim_k && !fresh; i += kWarp) seen += decay[i] * at[i] * k[i];
      write = beta * (write - WarpSum(seen));
    }
    float read = 0.0f;
    for (int i = lane; i < p.dim_k; i += kWarp) {
      const float x = (fresh ? 0.0f : decay[i] * at[i]) + k[i] * write;
      at[i] = x;
      read += x * q[i];
    }
    read = WarpSum(read);
    if (lane == 0) Store(out + row, p.scale * read);
  }
}

int Group(int heads, const TensorView& x) {
  WEIR_CHECK(x.size(1) > 0 && heads % x.size(1) == 0)
      << heads << " heads are no multiple of " << x.ToString();
  return static_cast<int>(heads / x.size(1));
}

RowsOf Rows(const TensorView& x) { return {x.raw(), x.row_stride(), x.dtype() == DType::kBF16}; }

MixerStep AsMixerStep(const RecurrenceArgs& args) {
  MixerStep step;
  step.sequences = static_cast<int>(args.slots.size(0));
  step.offsets = args.offsets.data<int32_t>();
  step.slots = args.slots.data<int32_t>();
  step.fresh = args.fresh.data<uint8_t>();
  step.state = static_cast<char*>(args.state);
  step.slot_stride_bytes = args.slot_stride_bytes;
  step.heads = args.heads;
  step.dim_k = static_cast<int>(args.q.size(2));
  step.dim_v = static_cast<int>(args.v.size(2));
  step.q_group = Group(args.heads, args.q);
  step.k_group = Group(args.heads, args.k);
  step.v_group = Group(args.heads, args.v);
  step.q = Rows(args.q);
  step.k = Rows(args.k);
  step.v = Rows(args.v);
  step.q_scale = args.scale;
  step.delta = args.update == Update::kDelta;
  step.decay = args.decay;
  step.decay_given = true;
  if (args.decay != Decay::kNone) step.decay_x = Rows(args.g);
  if (args.decay == Decay::kScalar && args.g.size(0) == 1) step.decay_x.stride = 0;
  if (args.decay == Decay::kVector) step.g_group = Group(args.heads, args.g);
  step.beta_given = true;
  if (step.delta) step.beta = Rows(args.beta);
  step.out = args.out.raw();
  step.out_stride = args.out.row_stride();
  return step;
}

}  // namespace

void RecurrenceStep(const RecurrenceArgs& args, Stream stream) {
  const int64_t sequences = args.slots.size(0);
  if (sequences == 0 || args.q.size(0) == 0) return;
  const MixerStep step = AsMixerStep(args);
  if (MixerStepSupported(step)) {
    RunMixerStep(step, stream);
    return;
  }
  WithActivation(args.q.dtype(), [&](auto tag) {
    using T = decltype(tag);
    StepParams<T> p{};
    p.q = static_cast<const T*>(args.q.raw());
    p.k = static_cast<const T*>(args.k.raw());
    p.v = static_cast<const T*>(args.v.raw());
    p.out = static_cast<T*>(args.out.raw());
    p.q_stride = args.q.row_stride();
    p.k_stride = args.k.row_stride();
    p.v_stride = args.v.row_stride();
    p.out_stride = args.out.row_stride();
    p.q_group = Group(args.heads, args.q);
    p.k_group = Group(args.heads, args.k);
    p.v_group = Group(args.heads, args.v);
    p.decay = args.decay;
    if (args.decay != Decay::kNone) {
      p.g = args.g.data<float>();
      p.g_stride = args.decay == Decay::kScalar && args.g.size(0) == 1 ? 0 : args.g.row_stride();
      p.g_group = args.decay == Decay::kVector ? Group(args.heads, args.g) : 1;
    }
    if (args.update == Update::kDelta) {
      p.beta = args.beta.data<float>();
      p.beta_stride = args.beta.row_stride();
    }
    p.scale = args.scale;
    p.dim_k = static_cast<int>(args.q.size(2));
    p.dim_v = static_cast<int>(args.v.size(2));
    p.offsets = args.offsets.data<int32_t>();
    p.slots = args.slots.data<int32_t>();
    p.fresh = args.fresh.data<uint8_t>();
    p.state = static_cast<char*>(args.state);
    p.slot_stride_bytes = args.slot_stride_bytes;
    const dim3 grid(static_cast<unsigned>(sequences), static_cast<unsigned>(args.heads),
                    static_cast<unsigned>(CeilDiv(p.dim_v, kRowsPerBlock)));
    LaunchOptions options;
    options.shared_bytes = static_cast<size_t>(3 * p.dim_k) * sizeof(float);
    Launch("recurrence_step", stream, StepRows<T>, grid, dim3(kWarps * kWarp), options, p);
  });
}

}  // namespace weir::kernels::gpu
