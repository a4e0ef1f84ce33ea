// Softmax attention: where keys and values live, storing the new ones, and the split of the work.
#include "kernels/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "core/cpu_features.h"
#include "core/thread_pool.h"
#include "kernels/cpu/attention_kernel.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cuda/ops.h"
#include "kernels/norm.h"
#include "kernels/pointwise.h"

namespace weir::kernels {
namespace {

// Queries of one unit of work: enough to pay for gathering keys and values as f32.
constexpr int64_t kUnitRows = 96;
// Multiply-adds below which waking threads costs more than it saves.
constexpr int64_t kSerialMacs = 200'000;

const AttentionKernel& FindKernel() {
#if defined(__x86_64__)
  if (CurrentSimdLevel() >= SimdLevel::kAvx512) return kAttentionAvx512;
  if (CurrentSimdLevel() >= SimdLevel::kAvx2) return kAttentionAvx2;
#endif
  return kAttentionPlain;
}

struct Shape {
  int64_t sequences, tokens, heads, kv_heads, head_dim, group, padded_dim;
  const int32_t *offsets, *slots, *cached;
};

Shape CheckShapes(const AttentionArgs& a, DType kv) {
  WEIR_CHECK(a.q.rank() == 3 && a.k.rank() == 3 && a.v.rank() == 3 && a.out.rank() == 3);
  Shape s{};
  s.sequences = a.slots.num_elements();
  s.tokens = a.q.size(0);
  s.heads = a.q.size(1);
  s.kv_heads = a.k.size(1);
  s.head_dim = a.q.size(2);
  WEIR_CHECK(a.k.size(0) == s.tokens && a.k.size(2) == s.head_dim) << a.k.ToString();
  WEIR_CHECK(a.v.size(0) == s.tokens && a.v.size(1) == s.kv_heads && a.v.size(2) == s.head_dim)
      << a.v.ToString();
  WEIR_CHECK(a.out.size(0) == s.tokens && a.out.size(1) == s.heads && a.out.size(2) == s.head_dim)
      << a.out.ToString();
  WEIR_CHECK(s.kv_heads > 0 && s.heads % s.kv_heads == 0) << s.heads << " / " << s.kv_heads;
  WEIR_CHECK(a.offsets.num_elements() == s.sequences + 1) << a.offsets.ToString();
  WEIR_CHECK(a.cached.num_elements() == s.sequences) << a.cached.ToString();
  WEIR_CHECK(kv == DType::kF32 || kv == DType::kBF16) << DTypeName(kv);
  s.group = s.heads / s.kv_heads;
  s.padded_dim = (s.head_dim + 15) / 16 * 16;
  s.offsets = a.offsets.data<int32_t>();
  s.slots = a.slots.data<int32_t>();
  s.cached = a.cached.data<int32_t>();
  return s;
}

// Pages of a layer.
class Pages {
 public:
  Pages(const PagedKv& kv, const Shape& s)
      : kv_(kv), row_bytes_(s.kv_heads * s.head_dim * DTypeSize(kv.dtype)) {
    WEIR_CHECK(kv.page_tokens > 0) << kv.page_tokens;
  }
  DType dtype() const { return kv_.dtype; }
  int64_t window() const { return INT64_MAX; }
  // Keys of entry j, all heads; values are page_tokens rows further.
  char* Key(int64_t seq, int64_t j) const {
    const int64_t page = kv_.block_table.row<int32_t>(seq)[j / kv_.page_tokens];
    return static_cast<char*>(kv_.base) + page * kv_.page_stride_bytes + kv_.layer_offset_bytes +
           j % kv_.page_tokens * row_bytes_;
  }
  char* Value(int64_t seq, int64_t j) const { return Key(seq, j) + kv_.page_tokens * row_bytes_; }

 private:
  const PagedKv& kv_;
  int64_t row_bytes_;
};

// A ring in the slot for old entries; the new ones, rounded, beside it until all are read.
class Ring {
 public:
  Ring(const RingKv& ring, const Shape& s, const char* new_keys, const char* new_values)
      : ring_(ring),
        s_(s),
        row_bytes_(s.kv_heads * s.head_dim * DTypeSize(ring.dtype)),
        new_keys_(new_keys),
        new_values_(new_values) {}
  DType dtype() const { return ring_.dtype; }
  int64_t window() const { return ring_.window; }
  char* Stored(int64_t seq, int64_t j, bool value) const {
    return static_cast<char*>(ring_.base) + s_.slots[seq] * ring_.slot_stride_bytes +
           (j % ring_.window + (value ? ring_.window : 0)) * row_bytes_;
  }
  const char* Key(int64_t seq, int64_t j) const {
    if (j < s_.cached[seq]) return Stored(seq, j, false);
    return new_keys_ + (s_.offsets[seq] + j - s_.cached[seq]) * row_bytes_;
  }
  const char* Value(int64_t seq, int64_t j) const {
    if (j < s_.cached[seq]) return Stored(seq, j, true);
    return new_values_ + (s_.offsets[seq] + j - s_.cached[seq]) * row_bytes_;
  }

 private:
  const RingKv& ring_;
  const Shape& s_;
  int64_t row_bytes_;
  const char *new_keys_, *new_values_;
};

// Consecutive tokens of one sequence and the query heads of one kv head.
struct Unit {
  int64_t seq, kv_head;
  int64_t token, tokens;  // first token of the batch, count
  int64_t position;       // entry of the first token
  int64_t first, last;    // entries that any of them sees: [first, last)
  int64_t parts_at = 0;   // where its parts begin, in floats, when splits run apart
  int64_t first_split() const { return first / kKeySplit; }
  int64_t splits() const { return (last - 1) / kKeySplit + 1 - first_split(); }
};

std::vector<Unit>& MakeUnits(const Shape& s, int64_t window) {
  static thread_local std::vector<Unit> units;
  units.clear();
  const int64_t step = std::max<int64_t>(1, kUnitRows / s.group);
  for (int64_t seq = 0; seq < s.sequences; ++seq) {
    if (s.slots[seq] < 0) continue;
    const int64_t run = s.offsets[seq + 1] - s.offsets[seq];
    for (int64_t t = 0; t < run; t += step) {
      for (int64_t h = 0; h < s.kv_heads; ++h) {
        Unit u{};
        u.seq = seq;
        u.kv_head = h;
        u.token = s.offsets[seq] + t;
        u.tokens = std::min(step, run - t);
        u.position = s.cached[seq] + t;
        u.first = window > u.position ? 0 : u.position - window + 1;
        u.last = u.position + u.tokens;
        units.push_back(u);
      }
    }
  }
  return units;
}

// Running softmax of the rows of a unit: row = token * group + head in the group.
struct Part {
  float *max, *sum, *acc;
  static int64_t Floats(int64_t rows, const Shape& s) { return rows * (2 + s.padded_dim); }
  Part(float* memory, int64_t rows) : max(memory), sum(memory + rows), acc(memory + 2 * rows) {}
  void Clear(int64_t rows, const Shape& s) {
    std::fill_n(max, rows, -INFINITY);
    std::fill_n(sum, rows, 0.0f);
    std::fill_n(acc, rows * s.padded_dim, 0.0f);
  }
};

template <typename Source>
class Attention {
 public:
  Attention(const AttentionArgs& args, const Shape& shape, const Source& source)
      : args_(args), s_(shape), source_(source), kernel_(FindKernel()) {}

  void Run(Stream stream) {
    std::vector<Unit>& units = MakeUnits(s_, source_.window());
    int64_t macs = 0, tasks = 0;
    for (const Unit& u : units) {
      macs += u.tokens * s_.group * (u.last - u.first) * s_.head_dim * 2;
      tasks += u.splits();
    }
    const auto count = static_cast<int64_t>(units.size());
    const int threads = macs < kSerialMacs ? 1 : stream.pool->num_threads();
    if (threads == 1) {
      for (const Unit& u : units) RunUnit(u);
    } else if (count >= 4 * threads || tasks == count) {
      // The last units of a run see most entries: they go first.
      stream.pool->ParallelFor(count, [&](int64_t i) { RunUnit(units[count - 1 - i]); });
    } else {
      RunSplits(units, tasks, stream);
    }
  }

 private:
  void RunUnit(const Unit& u) const {
    static thread_local Scratch scratch;
    const int64_t rows = u.tokens * s_.group, floats = Part::Floats(rows, s_);
    float* memory = scratch.Of<float>(2 * floats);
    Part total(memory, rows);
    total.Clear(rows, s_);
    for (int64_t split = 0; split < u.splits(); ++split) {
      Part part(memory + floats, rows);
      RunSplit(u, u.first_split() + split, part);
      for (int64_t r = 0; r < rows; ++r) MergeRow(total, part, r);
    }
    for (int64_t r = 0; r < rows; ++r) FinishRow(u, total, r);
  }

  // Few sequences with long caches: every split is a task of its own, merged afterwards.
  void RunSplits(std::vector<Unit>& units, int64_t tasks, Stream stream) const {
    struct Task {
      int32_t unit, split;
    };
    static thread_local std::vector<Task> list;
    static thread_local Scratch scratch;
    list.clear();
    list.reserve(tasks);
    int64_t floats = 0;
    for (size_t i = 0; i < units.size(); ++i) {
      units[i].parts_at = floats;
      floats += units[i].splits() * Part::Floats(units[i].tokens * s_.group, s_);
      for (int64_t split = 0; split < units[i].splits(); ++split) {
        list.push_back({static_cast<int32_t>(i), static_cast<int32_t>(split)});
      }
    }
    float* parts = scratch.Of<float>(floats);
    const Task* task_list = list.data();  // thread_local: other threads have another `list`
    stream.pool->ParallelFor(tasks, [&, task_list](int64_t i) {
      const Unit& u = units[task_list[i].unit];
      RunSplit(u, u.first_split() + task_list[i].split, PartOf(u, task_list[i].split, parts));
    });
    stream.pool->ParallelFor(static_cast<int64_t>(units.size()), [&](int64_t i) {
      static thread_local Scratch total_scratch;
      const Unit& u = units[i];
      const int64_t rows = u.tokens * s_.group;
      Part total(total_scratch.Of<float>(Part::Floats(rows, s_)), rows);
      total.Clear(rows, s_);
      for (int64_t split = 0; split < u.splits(); ++split) {
        const Part part = PartOf(u, split, parts);
        for (int64_t r = 0; r < rows; ++r) MergeRow(total, part, r);
      }
      for (int64_t r = 0; r < rows; ++r) FinishRow(u, total, r);
    });
  }

  Part PartOf(const Unit& u, int64_t split, float* parts) const {
    const int64_t rows = u.tokens * s_.group;
    return Part(parts + u.parts_at + split * Part::Floats(rows, s_), rows);
  }

  // All blocks of one split.
  void RunSplit(const Unit& u, int64_t split, Part part) const {
    static thread_local Scratch scratch;
    const int64_t rows = u.tokens * s_.group;
    part.Clear(rows, s_);
    KeyBlock block;
    block.head_dim = s_.head_dim;
    block.padded_dim = s_.padded_dim;
    block.bf16 = source_.dtype() == DType::kBF16;
    block.keys = scratch.Of<float>((kKeyBlock + rows) * s_.head_dim);
    float* q = block.keys + kKeyBlock * s_.head_dim;
    PackQueries(u, q);
    const int64_t end = std::min((split + 1) * kKeySplit, u.last);
    const int64_t start = std::max(split * kKeySplit, u.first / kKeyBlock * kKeyBlock);
    KeyRows key_rows[2];
    FindRows(u, start, key_rows[0]);
    int now = 0;
    for (int64_t begin = start; begin < end; begin += kKeyBlock, now = 1 - now) {
      FindRows(u, begin + kKeyBlock, key_rows[1 - now]);
      block.rows = &key_rows[now];
      block.next = &key_rows[1 - now];
      kernel_.gather(block);
      bool first = true;
      for (int64_t row = 0; row < rows; row += kernel_.tile_rows) {
        QueryTile tile;
        tile.rows = static_cast<int>(std::min<int64_t>(kernel_.tile_rows, rows - row));
        bool sees = false;
        for (int r = 0; r < tile.rows; ++r) {
          const int64_t position = u.position + (row + r) / s_.group;
          const int64_t first = position < source_.window() ? 0 : position - source_.window() + 1;
          tile.first[r] = static_cast<int>(std::clamp<int64_t>(first - begin, 0, kKeyBlock));
          tile.last[r] = static_cast<int>(std::clamp<int64_t>(position + 1 - begin, 0, kKeyBlock));
          sees |= tile.first[r] < tile.last[r];
        }
        if (!sees) continue;
        tile.q = q + row * s_.head_dim;
        tile.max = part.max + row;
        tile.sum = part.sum + row;
        tile.acc = part.acc + row * s_.padded_dim;
        kernel_.attend(block, tile, first);
        first = false;
      }
    }
  }

  // Rows of a tile interleaved, multiplied by what turns e^x into 2^x.
  void PackQueries(const Unit& u, float* packed) const {
    const float scale = args_.scale * 1.44269504088896341f;
    const int64_t rows = u.tokens * s_.group;
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t tile = row / kernel_.tile_rows * kernel_.tile_rows;
      const int64_t height = std::min<int64_t>(kernel_.tile_rows, rows - tile);
      const float* q = args_.q.row<float>(u.token + row / s_.group) +
                       (u.kv_head * s_.group + row % s_.group) * s_.head_dim;
      float* out = packed + tile * s_.head_dim + (row - tile);
      for (int64_t d = 0; d < s_.head_dim; ++d) out[d * height] = q[d] * scale;
    }
  }

  // Rows of the entries in [begin, begin + 64) that the unit sees; all null past its end.
  void FindRows(const Unit& u, int64_t begin, KeyRows& rows) const {
    rows = {};
    const int64_t offset = u.kv_head * s_.head_dim * DTypeSize(source_.dtype());
    const int64_t last = std::min(begin + kKeyBlock, u.last);
    for (int64_t j = std::max(begin, u.first); j < last; ++j) {
      rows.keys[j - begin] = source_.Key(u.seq, j) + offset;
      rows.values[j - begin] = source_.Value(u.seq, j) + offset;
    }
  }

  void MergeRow(Part& total, const Part& part, int64_t r) const {
    kernel_.merge(total.max + r, total.sum + r, total.acc + r * s_.padded_dim, part.max[r],
                  part.sum[r], part.acc + r * s_.padded_dim, s_.padded_dim);
  }

  void FinishRow(const Unit& u, const Part& total, int64_t r) const {
    float* out = args_.out.row<float>(u.token + r / s_.group) +
                 (u.kv_head * s_.group + r % s_.group) * s_.head_dim;
    kernel_.finish(total.sum[r], total.acc + r * s_.padded_dim, s_.head_dim, out);
  }

  const AttentionArgs& args_;
  const Shape& s_;
  const Source& source_;
  const AttentionKernel& kernel_;
};

// x [n] as stored.
void StoreRow(const AttentionKernel& kernel, DType dtype, const float* x, int64_t n, char* out) {
  if (dtype == DType::kBF16) {
    kernel.to_bf16(x, n, reinterpret_cast<uint16_t*>(out));
  } else {
    std::memcpy(out, x, static_cast<size_t>(n) * sizeof(float));
  }
}

void ZeroPadding(const AttentionArgs& args, const Shape& s) {
  for (int64_t seq = 0; seq < s.sequences; ++seq) {
    if (s.slots[seq] >= 0) continue;
    for (int64_t t = s.offsets[seq]; t < s.offsets[seq + 1]; ++t) {
      std::fill_n(args.out.row<float>(t), s.heads * s.head_dim, 0.0f);
    }
  }
}

// fn(seq, token) for every token of sequences with a slot, in parallel where there are many.
template <typename Fn>
void ForTokens(const Shape& s, Stream stream, const Fn& fn) {
  const int64_t width = s.kv_heads * s.head_dim;
  stream.pool->ParallelRanges(s.tokens, 1 + 65536 / (width + 1), [&](int64_t begin, int64_t end) {
    for (int64_t seq = 0; seq < s.sequences; ++seq) {
      if (s.slots[seq] < 0) continue;
      const int64_t last = std::min<int64_t>(end, s.offsets[seq + 1]);
      for (int64_t t = std::max<int64_t>(begin, s.offsets[seq]); t < last; ++t) fn(seq, t);
    }
  });
}

// [tokens, heads, head_dim] with strided tokens as [tokens, heads * head_dim].
TensorView HeadsAsRows(const TensorView& x) {
  const int64_t width = x.size(1) * x.size(2);
  TensorView wide(x.raw(), x.dtype(), {x.size(0), std::max(x.row_stride(), width)});
  return wide.Columns(0, width);
}

// In place on q and k.
void NormAndRotate(const AttentionArgs& args, Stream stream) {
  const int64_t head_dim = args.q.size(2), tokens = args.q.size(0);
  for (const auto& [x, weight] : {std::pair{args.q, args.q_norm}, {args.k, args.k_norm}}) {
    const TensorView rows = HeadsAsRows(x);
    if (weight.defined()) RmsNorm({rows, weight, head_dim, args.norm_eps, rows}, stream);
    if (args.inv_freq.defined() && tokens > 0) Rotary({x, args.positions, args.inv_freq}, stream);
  }
}

void ApplyGate(const AttentionArgs& args, Stream stream) {
  if (!args.gate.defined()) return;
  const TensorView rows = HeadsAsRows(args.out);
  GateMultiply(args.gate, rows, Activation::kSigmoid, rows, stream);
}

}  // namespace

int64_t AttentionScratchBytes(int heads, int kv_heads, int head_dim, int64_t tokens,
                              int64_t sequences, int64_t max_entries, DType activation,
                              Stream stream) {
  if constexpr (cuda::kBuilt) {
    if (stream.device == Device::kCuda) {
      return gpu::AttentionScratchBytes(heads, kv_heads, head_dim, tokens, sequences, max_entries,
                                        activation);
    }
  }
  return 0;
}

void PagedAttention(const AttentionArgs& args, const PagedKv& kv, Stream stream) {
  if constexpr (cuda::kBuilt) {
    if (stream.device == Device::kCuda) return gpu::PagedAttention(args, kv, stream);
  }
  const Shape s = CheckShapes(args, kv.dtype);
  NormAndRotate(args, stream);
  const AttentionKernel& kernel = FindKernel();
  const Pages pages(kv, s);
  const int64_t width = s.kv_heads * s.head_dim;
  ForTokens(s, stream, [&](int64_t seq, int64_t t) {
    const int64_t j = s.cached[seq] + t - s.offsets[seq];
    StoreRow(kernel, kv.dtype, args.k.row<float>(t), width, pages.Key(seq, j));
    StoreRow(kernel, kv.dtype, args.v.row<float>(t), width, pages.Value(seq, j));
  });
  ZeroPadding(args, s);
  Attention<Pages>(args, s, pages).Run(stream);
  ApplyGate(args, stream);
}

void WindowAttention(const AttentionArgs& args, const RingKv& ring, Stream stream) {
  if constexpr (cuda::kBuilt) {
    if (stream.device == Device::kCuda) return gpu::WindowAttention(args, ring, stream);
  }
  const Shape s = CheckShapes(args, ring.dtype);
  WEIR_CHECK(ring.window > 0) << ring.window;
  NormAndRotate(args, stream);
  const AttentionKernel& kernel = FindKernel();
  const int64_t width = s.kv_heads * s.head_dim, row_bytes = width * DTypeSize(ring.dtype);
  // Queries see old entries that the new ones will overwrite: the new ones wait here, as stored.
  static thread_local Scratch scratch;
  char* new_keys = scratch.Of<char>(2 * s.tokens * row_bytes);
  char* new_values = new_keys + s.tokens * row_bytes;
  ForTokens(s, stream, [&](int64_t, int64_t t) {
    StoreRow(kernel, ring.dtype, args.k.row<float>(t), width, new_keys + t * row_bytes);
    StoreRow(kernel, ring.dtype, args.v.row<float>(t), width, new_values + t * row_bytes);
  });
  ZeroPadding(args, s);
  const Ring source(ring, s, new_keys, new_values);
  Attention<Ring>(args, s, source).Run(stream);
  ApplyGate(args, stream);
  ForTokens(s, stream, [&](int64_t seq, int64_t t) {
    if (t < s.offsets[seq + 1] - ring.window) return;  // overwritten within the run
    const int64_t j = s.cached[seq] + t - s.offsets[seq];
    std::memcpy(source.Stored(seq, j, false), new_keys + t * row_bytes, row_bytes);
    std::memcpy(source.Stored(seq, j, true), new_values + t * row_bytes, row_bytes);
  });
}

}  // namespace weir::kernels
