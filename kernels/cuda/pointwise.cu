// Elementwise ops over rows that may be strided. One thread takes a few neighbouring elements where
// widths, strides and addresses allow it, else one.
#include "kernels/pointwise.h"

#include <algorithm>

#include "core/check.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/vectors.cuh"

namespace weir::kernels::gpu {
namespace {

constexpr int kThreads = 256;

// Calls body.template Do<N>(row, column) for every N-th column of every row: rows along x, parts of
// them along y, so that nothing is divided.
template <int N, typename Body>
__global__ __launch_bounds__(kThreads) void RowsKernel(Body body, int64_t rows, int width) {
  PdlLaunchDependents();
  PdlWait();
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  const int column = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x) * N;
  if (row < rows && column < width) body.template Do<N>(row, column);
}

// N: elements of a thread where `vectors`.
template <int N, typename Body>
void RunRows(const char* op, int64_t rows, int64_t width, bool vectors, const Body& body,
             Stream stream) {
  if (rows == 0 || width == 0) return;
  const int64_t chunks = vectors ? width / N : width;
  unsigned across = 1;
  while (across < chunks && across < kThreads) across *= 2;
  const dim3 block(across, kThreads / across);
  const dim3 grid(static_cast<unsigned>(CeilDiv(rows, block.y)),
                  static_cast<unsigned>(CeilDiv(chunks, across)));
  Launch(op, stream, vectors ? RowsKernel<N, Body> : RowsKernel<1, Body>, grid, block, {}, body,
         rows, static_cast<int>(width));
}

// Elements of a thread where everything has this type.
template <typename T>
constexpr int kTogether = 16 / static_cast<int>(sizeof(T));

// Whether rows of `width` elements of all these views can be moved N at a time.
template <int N, typename... Views>
bool Vectors(int64_t width, const Views&... views) {
  return width % N == 0 && (RowsAligned(views) && ...);
}

void CheckSame(const TensorView& a, const TensorView& b) {
  WEIR_CHECK(a.rank() == b.rank() && a.num_elements() == b.num_elements() && a.size(0) == b.size(0))
      << a.ToString() << " against " << b.ToString();
}
void CheckSameType(const TensorView& a, const TensorView& b) {
  WEIR_CHECK(a.dtype() == b.dtype()) << a.ToString() << " against " << b.ToString();
}

template <typename T>
struct Rows {  // of a view
  T* data;
  int64_t stride;
  __device__ __forceinline__ T* at(int64_t row, int column) const {
    return data + row * stride + column;
  }
};
template <typename T>
Rows<T> RowsOf(const TensorView& x) {
  return {static_cast<T*>(x.raw()), x.row_stride()};
}

// Walks over the columns of heads with one division.
struct HeadWalk {
  int head, left, width;
  __device__ __forceinline__ HeadWalk(int column, int width)
      : head(column / width), left(width - (column - head * width)), width(width) {}
  __device__ __forceinline__ void Next() {
    if (--left == 0) ++head, left = width;
  }
};

// The switch stands outside of the loops: an array that is indexed at run time would not be held in
// registers.
template <int N, typename Fn>
__device__ __forceinline__ void Each(float (&x)[N], const Fn& fn) {
#pragma unroll
  for (int i = 0; i < N; ++i) x[i] = fn(x[i]);
}
template <typename T, int N>
__device__ __forceinline__ void ActivateN(Activation activation, float (&x)[N]) {
  switch (activation) {
    case Activation::kNone:
      return;
    case Activation::kSilu:
      return Each(x, [](float v) { return v * SigmoidFor<T>(v); });
    case Activation::kGelu:
      return Each(x, [](float v) { return 0.5f * v * erfcf(v * -0.70710678118654752f); });
    case Activation::kGeluTanh:  // 0.5 (1 + tanh(u)) = sigmoid(2 u)
      return Each(x, [](float v) {
        return v * SigmoidFor<T>(1.5957691216057308f * (v + 0.044715f * v * v * v));
      });
    case Activation::kRelu:
      return Each(x, [](float v) { return fmaxf(v, 0.0f); });
    case Activation::kRelu2:
      return Each(x, [](float v) { return fmaxf(v, 0.0f) * fmaxf(v, 0.0f); });
    case Activation::kSigmoid:
      return Each(x, [](float v) { return SigmoidFor<T>(v); });
  }
}

template <typename T>
struct GateMultiplyBody {
  Rows<const T> gate, up;
  Rows<T> out;
  Activation activation;
  template <int N>
  __device__ void Do(int64_t row, int column) const {
    float g[N], u[N];
    LoadN<N>(gate.at(row, column), g);
    LoadN<N>(up.at(row, column), u);
    ActivateN<T, N>(activation, g);
#pragma unroll
    for (int i = 0; i < N; ++i) u[i] *= g[i];
    StoreN<N>(out.at(row, column), u);
  }
};

template <typename T>
struct ActivateBody {
  Rows<const T> x;
  Rows<T> out;
  Activation activation;
  template <int N>
  __device__ void Do(int64_t row, int column) const {
    float v[N];
    LoadN<N>(x.at(row, column), v);
    ActivateN<T, N>(activation, v);
    StoreN<N>(out.at(row, column), v);
  }
};

template <typename T>
struct MultiplyBody {
  Rows<const T> a, b;
  Rows<T> out;
  template <int N>
  __device__ void Do(int64_t row, int column) const {
    float x[N], y[N];
    LoadN<N>(a.at(row, column), x);
    LoadN<N>(b.at(row, column), y);
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] *= y[i];
    StoreN<N>(out.at(row, column), x);
  }
};

// h[target of row] += factor * delta[row]: AddScaled, and its scatter with `rows` and `weight`.
template <typename T>
struct AddScaledBody {
  Rows<float> h;
  Rows<const T> delta;
  const int32_t* rows;  // null: the same row
  const float* weight;  // null: scale
  float scale;
  int h_rows;
  template <int N>
  __device__ void Do(int64_t row, int column) const {
    const int64_t target = rows != nullptr ? rows[row] : row;
    if (target < 0 || target >= h_rows) return;
    const float factor = weight != nullptr ? weight[row] : scale;
    float x[N], d[N];
    LoadN<N>(h.at(target, column), x);
    LoadN<N>(delta.at(row, column), d);
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] = fmaf(d[i], factor, x[i]);
    StoreN<N>(h.at(target, column), x);
  }
};

template <typename T>
struct GatherBody {
  Rows<const T> x;
  const int32_t* rows;
  Rows<T> out;
  int x_rows;
  template <int N>
  __device__ void Do(int64_t row, int column) const {
    const int32_t source = rows[row];
    float v[N] = {};
    if (source >= 0 && source < x_rows) LoadN<N>(x.at(source, column), v);
    StoreN<N>(out.at(row, column), v);
  }
};

template <typename T>
struct EmbeddingBody {
  Rows<const T> table;
  const int32_t* ids;
  Rows<float> out;
  int vocab;
  float scale;
  template <int N>
  __device__ void Do(int64_t row, int column) const {
    const int32_t id = ids[row];
    float v[N] = {};
    if (id >= 0 && id < vocab) {
      LoadN<N>(table.at(id, column), v);
#pragma unroll
      for (int i = 0; i < N; ++i) v[i] *= scale;
    }
    StoreN<N>(out.at(row, column), v);
  }
};

// log(1 + e^x): what is lost next to x beyond 20 is below half a step of a float.
__device__ __forceinline__ float ExactSoftplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }

template <typename T>
struct LogDecayBody {
  Rows<const T> x;
  const float *bias, *exp_a;
  Rows<float> out;
  LogDecayArgs::Form form;
  int per_head;
  float normalizer, clamp_min, lower_bound;
  bool has_clamp;
  template <int N>
  __device__ void Do(int64_t row, int column) const {
    float v[N];
    LoadN<N>(x.at(row, column), v);
    HeadWalk walk(column, per_head);
#pragma unroll
    for (int i = 0; i < N; ++i, walk.Next()) {
      if (bias != nullptr) v[i] += bias[column + i];
      const float a = exp_a != nullptr ? exp_a[walk.head] : 0.0f;
      if (form == LogDecayArgs::Form::kSoftplus) {
        v[i] = -a * ExactSoftplus(v[i]);
      } else if (form == LogDecayArgs::Form::kLogSigmoid) {
        v[i] = -ExactSoftplus(-v[i]) / normalizer;
        if (has_clamp) v[i] = fmaxf(clamp_min, v[i]);
      } else {
        v[i] = lower_bound * SigmoidFor<float>(a * v[i]);
      }
    }
    StoreN<N>(out.at(row, column), v);
  }
};

template <typename T>
struct BetaBody {
  Rows<const T> x;
  Rows<float> out;
  float scale;
  template <int N>
  __device__ void Do(int64_t row, int column) const {
    float v[N];
    LoadN<N>(x.at(row, column), v);
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = scale * SigmoidFor<float>(v[i]);
    StoreN<N>(out.at(row, column), v);
  }
};

template <typename T>
struct AddSkipBody {
  Rows<const T> xs;
  const float* d;
  Rows<T> out;
  int per_head;
  template <int N>
  __device__ void Do(int64_t row, int column) const {
    float x[N], y[N];
    LoadN<N>(xs.at(row, column), x);
    LoadN<N>(out.at(row, column), y);
    HeadWalk walk(column, per_head);
#pragma unroll
    for (int i = 0; i < N; ++i, walk.Next()) y[i] = fmaf(x[i], d[walk.head], y[i]);
    StoreN<N>(out.at(row, column), y);
  }
};

template <typename T>
struct EluPlusOneBody {
  Rows<T> x;
  template <int N>
  __device__ void Do(int64_t row, int column) const {
    float v[N];
    LoadN<N>(x.at(row, column), v);
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = v[i] > 0.0f ? v[i] + 1.0f : ExpFor<T>(v[i]);
    StoreN<N>(x.at(row, column), v);
  }
};

template <typename T>
struct DivideByLastBody {
  Rows<const T> x;
  Rows<T> out;
  int width;  // of a head in out
  float eps;
  template <int N>
  __device__ void Do(int64_t row, int column) const {
    const int head = column / width;
    const T* from = x.at(row, head * (width + 1));
    const float y = Load(from + (column - head * width)) / (Load(from + width) + eps);
    Store(out.at(row, column), y);
  }
};

}  // namespace

void GateMultiply(TensorView gate, TensorView up, Activation activation, TensorView out,
                  Stream stream) {
  CheckSame(gate, up), CheckSame(gate, out);
  CheckSameType(gate, up), CheckSameType(gate, out);
  WithActivation(gate.dtype(), [&](auto tag) {
    using T = decltype(tag);
    const GateMultiplyBody<T> body{RowsOf<const T>(gate), RowsOf<const T>(up), RowsOf<T>(out),
                                   activation};
    RunRows<kTogether<T>>("GateMultiply", gate.size(0), RowWidth(gate),
                          Vectors<kTogether<T>>(RowWidth(gate), gate, up, out), body, stream);
  });
}

void Activate(TensorView x, Activation activation, TensorView out, Stream stream) {
  CheckSame(x, out), CheckSameType(x, out);
  WithActivation(x.dtype(), [&](auto tag) {
    using T = decltype(tag);
    const ActivateBody<T> body{RowsOf<const T>(x), RowsOf<T>(out), activation};
    RunRows<kTogether<T>>("Activate", x.size(0), RowWidth(x),
                          Vectors<kTogether<T>>(RowWidth(x), x, out), body, stream);
  });
}

void Multiply(TensorView a, TensorView b, TensorView out, Stream stream) {
  CheckSame(a, b), CheckSame(a, out);
  CheckSameType(a, b), CheckSameType(a, out);
  WithActivation(a.dtype(), [&](auto tag) {
    using T = decltype(tag);
    const MultiplyBody<T> body{RowsOf<const T>(a), RowsOf<const T>(b), RowsOf<T>(out)};
    RunRows<kTogether<T>>("Multiply", a.size(0), RowWidth(a),
                          Vectors<kTogether<T>>(RowWidth(a), a, b, out), body, stream);
  });
}

void AddScaled(TensorView h, TensorView delta, float scale, Stream stream) {
  CheckSame(h, delta);
  WithActivation(delta.dtype(), [&](auto tag) {
    using T = decltype(tag);
    AddScaledBody<T> body{};
    body.h = {h.data<float>(), h.row_stride()};
    body.delta = RowsOf<const T>(delta);
    body.scale = scale;
    body.h_rows = static_cast<int>(h.size(0));
    RunRows<4>("AddScaled", h.size(0), RowWidth(h), Vectors<4>(RowWidth(h), h, delta), body,
               stream);
  });
}

void ScatterAddScaled(TensorView h, TensorView delta, TensorView rows, TensorView weight,
                      Stream stream) {
  WEIR_CHECK(rows.size(0) == delta.size(0) && weight.size(0) == delta.size(0) &&
             (delta.size(0) == 0 || RowWidth(h) == RowWidth(delta)))
      << h.ToString() << " " << delta.ToString() << " " << rows.ToString();
  WithActivation(delta.dtype(), [&](auto tag) {
    using T = decltype(tag);
    AddScaledBody<T> body{};
    body.h = {h.data<float>(), h.row_stride()};
    body.delta = RowsOf<const T>(delta);
    body.rows = rows.data<int32_t>();
    body.weight = weight.data<float>();
    body.h_rows = static_cast<int>(h.size(0));
    RunRows<4>("ScatterAddScaled", delta.size(0), RowWidth(delta),
               Vectors<4>(RowWidth(delta), h, delta), body, stream);
  });
}

void GatherRows(TensorView x, TensorView rows, TensorView out, Stream stream) {
  WEIR_CHECK(rows.size(0) == out.size(0) && (out.size(0) == 0 || RowWidth(x) == RowWidth(out)))
      << x.ToString() << " " << rows.ToString() << " " << out.ToString();
  CheckSameType(x, out);
  WithActivation(x.dtype(), [&](auto tag) {
    using T = decltype(tag);
    GatherBody<T> body{};
    body.x = RowsOf<const T>(x);
    body.rows = rows.data<int32_t>();
    body.out = RowsOf<T>(out);
    body.x_rows = static_cast<int>(x.size(0));
    RunRows<kTogether<T>>("GatherRows", out.size(0), RowWidth(out),
                          Vectors<kTogether<T>>(RowWidth(out), x, out), body, stream);
  });
}

void EmbeddingLookup(TensorView table, TensorView ids, float scale, TensorView out, Stream stream) {
  WEIR_CHECK(table.rank() == 2 && out.rank() == 2 && ids.size(0) == out.size(0) &&
             table.size(1) == out.size(1))
      << table.ToString() << " " << ids.ToString() << " " << out.ToString();
  WithActivation(table.dtype(), [&](auto tag) {
    using T = decltype(tag);
    EmbeddingBody<T> body{};
    body.table = RowsOf<const T>(table);
    body.ids = ids.data<int32_t>();
    body.out = {out.data<float>(), out.row_stride()};
    body.vocab = static_cast<int>(table.size(0));
    body.scale = scale;
    RunRows<4>("EmbeddingLookup", out.size(0), out.size(1), Vectors<4>(out.size(1), table, out),
               body, stream);
  });
}

void LogDecay(const LogDecayArgs& args, Stream stream) {
  CheckSame(args.x, args.out);
  const int64_t n = RowWidth(args.x);
  if (n == 0) return;
  WEIR_CHECK(!args.bias.defined() || args.bias.num_elements() == n)
      << args.bias.ToString() << " for " << args.x.ToString();
  const bool heads = args.form != LogDecayArgs::Form::kLogSigmoid;
  WEIR_CHECK(!heads ||
             (args.exp_a.defined() && args.exp_a.size(0) > 0 && n % args.exp_a.size(0) == 0))
      << args.exp_a.ToString() << " for " << args.x.ToString();
  WithActivation(args.x.dtype(), [&](auto tag) {
    using T = decltype(tag);
    LogDecayBody<T> body{};
    body.x = RowsOf<const T>(args.x);
    body.bias = DataOrNull<float>(args.bias);
    body.exp_a = heads ? args.exp_a.data<float>() : nullptr;
    body.out = {args.out.data<float>(), args.out.row_stride()};
    body.form = args.form;
    body.per_head = heads ? static_cast<int>(n / args.exp_a.size(0)) : 1;
    body.normalizer = args.normalizer;
    body.clamp_min = args.clamp_min;
    body.lower_bound = args.lower_bound;
    body.has_clamp = args.has_clamp;
    RunRows<4>("LogDecay", args.x.size(0), n, Vectors<4>(n, args.x, args.out), body, stream);
  });
}

void Beta(TensorView x, float scale, TensorView out, Stream stream) {
  CheckSame(x, out);
  WithActivation(x.dtype(), [&](auto tag) {
    using T = decltype(tag);
    const BetaBody<T> body{RowsOf<const T>(x), {out.data<float>(), out.row_stride()}, scale};
    RunRows<4>("Beta", x.size(0), RowWidth(x), Vectors<4>(RowWidth(x), x, out), body, stream);
  });
}

void AddSkip(TensorView xs, TensorView d, TensorView out, Stream stream) {
  CheckSame(xs, out), CheckSameType(xs, out);
  WEIR_CHECK(xs.rank() == 3 && d.num_elements() == xs.size(1))
      << d.ToString() << " for " << xs.ToString();
  WithActivation(xs.dtype(), [&](auto tag) {
    using T = decltype(tag);
    const AddSkipBody<T> body{RowsOf<const T>(xs), d.data<float>(), RowsOf<T>(out),
                              static_cast<int>(xs.size(2))};
    RunRows<kTogether<T>>("AddSkip", xs.size(0), RowWidth(xs),
                          Vectors<kTogether<T>>(RowWidth(xs), xs, out), body, stream);
  });
}

void EluPlusOne(TensorView x, Stream stream) {
  WithActivation(x.dtype(), [&](auto tag) {
    using T = decltype(tag);
    const EluPlusOneBody<T> body{RowsOf<T>(x)};
    RunRows<kTogether<T>>("EluPlusOne", x.size(0), RowWidth(x),
                          Vectors<kTogether<T>>(RowWidth(x), x), body, stream);
  });
}

void DivideByLast(TensorView x, float eps, TensorView out, Stream stream) {
  WEIR_CHECK(x.rank() == 3 && out.rank() == 3 && x.size(0) == out.size(0) &&
             x.size(1) == out.size(1) && x.size(2) == out.size(2) + 1)
      << x.ToString() << " against " << out.ToString();
  CheckSameType(x, out);
  WithActivation(x.dtype(), [&](auto tag) {
    using T = decltype(tag);
    const DivideByLastBody<T> body{RowsOf<const T>(x), RowsOf<T>(out),
                                   static_cast<int>(out.size(2)), eps};
    RunRows<1>("DivideByLast", x.size(0), RowWidth(out), false, body, stream);
  });
}

}  // namespace weir::kernels::gpu
