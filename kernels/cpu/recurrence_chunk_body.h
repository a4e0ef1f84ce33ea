// The chunk form: matrix products over chunks of tokens, the state between them.
//
// With Gamma_i the decay from the chunk's start to after token i, a chunk that begins with S
// computes
//   R  = beta (V - (K Gamma) S)              delta;  additive: R = V
//   (I + M) X = R,  M_ij = beta_i (k_i . decay(j -> i) k_j), j < i        delta;  additive: X = R
//   O  = (Q Gamma) S + P X,  P_ij = q_i . decay(j -> i) k_j, j <= i
//   S <- Gamma_end S + (K decay(j -> end))^T X
// (Yang et al. 2023 and 2024; Dao & Gu 2024). Every decay is a product of exp(g) <= 1 of the tokens
// it spans: nothing overflows, nothing is subtracted, g = -inf is 0, and the rounding is that of
// the token-by-token form. With a decay per channel P and M are built in 16 x 16 blocks: the
// diagonal ones run the decay along, the others split it at the boundary between the blocks.
//
// S lies [K, panel] here, a panel being the columns that fit registers; a panel passes a whole
// chunk from the first-level cache.
#pragma once

#include "kernels/cpu/recurrence_job.h"
#include "kernels/cpu/recurrence_step_body.h"
#include "kernels/cpu/simd.h"

namespace weir::kernels {
namespace {

constexpr int kBlock = 16;
constexpr int kChunk = 32;  // tokens; a multiple of kBlock
#if defined(__AVX512F__)
constexpr int kPanelVecs = 4;
constexpr int kDiagonalRows = 8;
#elif defined(__AVX2__)
constexpr int kPanelVecs = 3;
constexpr int kDiagonalRows = 4;
#else
constexpr int kPanelVecs = 2;
constexpr int kDiagonalRows = 4;
#endif
constexpr int kPanel = kPanelVecs * kLanes;

// Rows of a register tile of kVecs vectors: enough chains to fill the multiply-add units.
template <int kVecs>
constexpr int kRowsFor = (kLanes == 16 && kVecs <= 2) ? 8 : 4;

// Matrices of a chunk, row-major. Rows of tokens that a short chunk lacks are zero (their decay 1).
struct ChunkWork {
  int64_t K;       // dim_k rounded up to kBlock; the columns added are zero
  float* s;        // panels of [K, kPanel]
  const float* q;  // [kChunk, q_row]: the input itself where it needs no padding, else q_copy;
  int64_t q_row;   //   with vector decay times Gamma
  float* q_copy;   // [kChunk, K]
  float* k;        // [kChunk, K]; with vector decay times Gamma
  float* k_end;    // [kChunk, K] vector decay: k times decay(j -> end); else k
  float* k_t;      // k transposed, as P and M need it: [K, kChunk]; with vector decay in blocks,
                   // [kChunk / kBlock][K, kBlock]
  float* decay;    // [kChunk, K] vector decay: exp(g)
  float* total;    // [kChunk / kBlock][K] vector decay: product over a block
  float* s_decay;  // [K]: Gamma_end
  float* p;        // [kChunk, kChunk], times scale
  float* m;        // [kChunk, kChunk]; entries with j >= i are undefined
  float* x;        // [kChunk, kPanel]
  // Factors of rows; Gamma and decay(j -> end) are 1 here with vector decay.
  float gamma[kChunk];      // Gamma
  float out_gamma[kChunk];  // Gamma times scale
  float to_end[kChunk];     // decay(j -> end)
  float beta[kChunk];
};

// acc += a b: a(row, i) = a[row * a_row + i * a_step], b [depth, >= kVecs vectors].
template <bool kSubtract, int kRows, int kVecs>
WEIR_INLINE void MultiplyAdd(Vec (&acc)[kRows][kVecs], const float* a, int64_t a_row,
                             int64_t a_step, const float* b, int64_t b_row, int64_t depth) {
  for (int64_t i = 0; i < depth; ++i) {
    Vec bv[kVecs];
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) bv[j] = Load(b + j * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Vec av = Set1(a[r * a_row]);
#pragma GCC unroll 4
      for (int j = 0; j < kVecs; ++j) {
        acc[r][j] = kSubtract ? Fnma(av, bv[j], acc[r][j]) : Fma(av, bv[j], acc[r][j]);
      }
    }
    a += a_step;
    b += b_row;
  }
}

// c [kRows of kChunk, kVecs vectors] = a b: rows of a a_row, of b b_row apart; K of b's rows.
template <int kRows, int kVecs>
WEIR_INLINE void TileProduct(const float* a, int64_t a_row, const float* b, int64_t b_row,
                             int64_t K, float* c) {
  Vec acc[kRows][kVecs] = {};
  MultiplyAdd<false>(acc, a, a_row, 1, b, b_row, K);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) Store(c + r * kChunk + j * kLanes, acc[r][j]);
  }
}

// c [kBlock, cols] = a b for a [kBlock, K] and b [K, cols], cols a multiple of kBlock; c has rows
// of kChunk. An element is one chain of multiply-adds whatever the tile.
void BlockProduct(const float* a, int64_t a_row, const float* b, int64_t b_row, int64_t cols,
                  int64_t K, float* c) {
  constexpr int kOneVecRows = kLanes == 16 ? 16 : 8, kTwoVecRows = kLanes == 16 ? 8 : 4;
  int64_t col = 0;
  for (; col + 2 * kLanes <= cols; col += 2 * kLanes) {
    for (int r = 0; r < kBlock; r += kTwoVecRows) {
      TileProduct<kTwoVecRows, 2>(a + r * a_row, a_row, b + col, b_row, K, c + r * kChunk + col);
    }
  }
  for (; col < cols; col += kLanes) {
    for (int r = 0; r < kBlock; r += kOneVecRows) {
      TileProduct<kOneVecRows, 1>(a + r * a_row, a_row, b + col, b_row, K, c + r * kChunk + col);
    }
  }
}

// dst [kBlock, K] = rows [t, t + kBlock) of src; zeros beyond `tokens` and dim_k.
WEIR_INLINE void CopyRows(const float* src, int64_t stride, int64_t tokens, int64_t dim_k,
                          int64_t K, float* dst) {
  for (int64_t i = 0; i < kBlock; ++i, src += stride, dst += K) {
    for (int64_t c = 0; c < K; c += kLanes) {
      const int64_t left = i < tokens ? dim_k - c : 0;
      const Vec x = left >= kLanes ? Load(src + c)
                                   : LoadPartial(src + c, left > 0 ? static_cast<int>(left) : 0);
      Store(dst + c, x);
    }
  }
}

// [kBlock, K] -> [K, kBlock] with rows of dst_row
WEIR_INLINE void TransposeBlock(const float* src, int64_t K, float* dst, int64_t dst_row) {
  for (int64_t c = 0; c < K; c += kLanes) {
    for (int i = 0; i < kBlock; i += kLanes) {
      Vec rows[kLanes];
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) rows[r] = Load(src + (i + r) * K + c);
      Transpose(rows);
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) Store(dst + (c + r) * dst_row + i, rows[r]);
    }
  }
}

// Scalar or no decay: the factors of rows.
WEIR_INLINE void PrepareFactors(const RecurrenceJob& job, int64_t t0, int64_t n, float* decay,
                                ChunkWork& w) {
  for (int64_t i = 0; i < kChunk; ++i) {
    decay[i] = job.g && i < n ? job.g[(t0 + i) * job.g_stride] : 0.0f;
  }
  for (int i = 0; i < kChunk; i += kLanes) Store(decay + i, Exp(Load(decay + i)));
  float product = 1.0f;
  for (int64_t i = 0; i < kChunk; ++i) {
    product *= decay[i];
    w.gamma[i] = product;
    w.out_gamma[i] = product * job.scale;
  }
  for (int64_t c = 0; c < w.K; ++c) w.s_decay[c] = product;
  product = 1.0f;
  for (int64_t i = kChunk - 1; i >= 0; --i) {
    w.to_end[i] = product;
    product *= decay[i];
  }
}

// Scalar or no decay: everything of a chunk that does not depend on the columns of V.
void PrepareScalar(const RecurrenceJob& job, int64_t t0, int64_t n, ChunkWork& w) {
  const int64_t K = w.K, blocks = (n + kBlock - 1) / kBlock;
  float decay[kChunk];
  PrepareFactors(job, t0, n, decay, w);
  const bool pad_q = job.dim_k != K || n % kBlock != 0;
  w.q = pad_q ? w.q_copy : job.q + t0 * job.q_stride;
  w.q_row = pad_q ? K : job.q_stride;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t t = t0 + b * kBlock, left = n - b * kBlock, at = b * kBlock * K;
    if (pad_q) CopyRows(job.q + t * job.q_stride, job.q_stride, left, job.dim_k, K, w.q_copy + at);
    CopyRows(job.k + t * job.k_stride, job.k_stride, left, job.dim_k, K, w.k + at);
    TransposeBlock(w.k + at, K, w.k_t + b * kBlock, kChunk);
  }
  float row[kChunk] = {};  // decay(j -> i) of the current i; zero for j > i
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t at = b * kBlock, cols = at + kBlock;
    BlockProduct(w.q + at * w.q_row, w.q_row, w.k_t, kChunk, cols, K, w.p + at * kChunk);
    if (job.delta) BlockProduct(w.k + at * K, K, w.k_t, kChunk, cols, K, w.m + at * kChunk);
    for (int64_t i = at; i < cols; ++i) {
      for (int64_t j = 0; j < cols; j += kLanes) Store(row + j, Load(row + j) * decay[i]);
      row[i] = 1.0f;
      for (int64_t j = 0; j < cols; j += kLanes) {
        float *p = w.p + i * kChunk + j, *m = w.m + i * kChunk + j;
        Store(p, Load(p) * Load(row + j) * job.scale);
        if (job.delta) Store(m, Load(m) * Load(row + j) * w.beta[i]);
      }
    }
  }
}

// Rows [kFirst, kFirst + kDiagonalRows) and columns [kCol, kCol + kLanes) of a diagonal block of P
// and M, decay per channel. Lane j of `run` is decay(j -> i) k_j of one channel while i walks down.
template <bool kDelta, int kFirst, int kCol>
WEIR_INLINE void DiagonalTile(const ChunkWork& w, int64_t block) {
  const int64_t K = w.K, base = block * kBlock;
  const float *q = w.q_copy + base * K, *k = w.k + base * K, *decay = w.decay + base * K;
  const float* k_t = w.k_t + base * K + kCol;
  Vec p[kDiagonalRows] = {}, m[kDiagonalRows] = {};
  for (int64_t c = 0; c < K; ++c) {
    Vec run = Load(k_t + c * kBlock);
#pragma GCC unroll 16
    for (int i = kCol + 1; i < kFirst; ++i) {
      run = MultiplyFirst(run, Set1(decay[i * K + c]), i - kCol);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kDiagonalRows; ++r) {
      const int i = kFirst + r;
      if (i > kCol) run = MultiplyFirst(run, Set1(decay[i * K + c]), i - kCol);
      p[r] = Fma(run, Set1(q[i * K + c]), p[r]);
      if (kDelta) m[r] = Fma(run, Set1(k[i * K + c]), m[r]);
    }
  }
  const int64_t at = (base + kFirst) * kChunk + base + kCol;
#pragma GCC unroll 8
  for (int r = 0; r < kDiagonalRows; ++r) {
    Store(w.p + at + r * kChunk, KeepFirst(p[r], kFirst + r + 1 - kCol));
    if (kDelta) Store(w.m + at + r * kChunk, m[r] * w.beta[base + kFirst + r]);
  }
}

template <bool kDelta, int kFirst, int kCol>
WEIR_INLINE void DiagonalTiles(const ChunkWork& w, int64_t block) {
  if constexpr (kCol < kBlock) {
    if constexpr (kFirst + kDiagonalRows > kCol) {
      DiagonalTile<kDelta, kFirst, kCol>(w, block);
    } else {  // above the diagonal
      for (int r = 0; r < kDiagonalRows; ++r) {
        Store(w.p + (block * kBlock + kFirst + r) * kChunk + block * kBlock + kCol, Vec{});
      }
    }
    if constexpr (kFirst + kDiagonalRows < kBlock) {
      DiagonalTiles<kDelta, kFirst + kDiagonalRows, kCol>(w, block);
    } else {
      DiagonalTiles<kDelta, 0, kCol + kLanes>(w, block);
    }
  }
}

// Scales block b of q and k by the decay from the block's start and leaves in k_end the k scaled by
// the decay to the block's end; total: the block's whole decay.
void ScaleBlock(const ChunkWork& w, int64_t b) {
  const int64_t K = w.K, base = b * kBlock * K;
  for (int64_t c = 0; c < K; c += kLanes) {
    Vec product = Set1(1.0f);
    for (int64_t i = kBlock - 1; i >= 0; --i) {
      Store(w.k_end + base + i * K + c, Load(w.k + base + i * K + c) * product);
      product *= Load(w.decay + base + i * K + c);
    }
    product = Set1(1.0f);
    for (int64_t i = 0; i < kBlock; ++i) {
      product *= Load(w.decay + base + i * K + c);
      Store(w.q_copy + base + i * K + c, Load(w.q_copy + base + i * K + c) * product);
      Store(w.k + base + i * K + c, Load(w.k + base + i * K + c) * product);
    }
    Store(w.total + b * K + c, product);
  }
}

// rows [kBlock, K] *= factor [K]
WEIR_INLINE void ScaleRows(float* rows, const float* factor, int64_t K) {
  for (int64_t i = 0; i < kBlock; ++i) {
    for (int64_t c = 0; c < K; c += kLanes) {
      Store(rows + i * K + c, Load(rows + i * K + c) * Load(factor + c));
    }
  }
}

// Block (b, a), a < b, of P and M, decay per channel; then q and k of block b reach back over block
// a.
void OffDiagonalBlock(const RecurrenceJob& job, const ChunkWork& w, int64_t b, int64_t a) {
  const int64_t K = w.K, size = kBlock * K, at = b * kBlock * kChunk + a * kBlock;
  const float* k_t = w.k_t + a * size;
  BlockProduct(w.q_copy + b * size, K, k_t, kBlock, kBlock, K, w.p + at);
  ScaleRows(w.q_copy + b * size, w.total + a * K, K);
  ScaleRows(w.k_end + a * size, w.total + b * K, K);
  if (!job.delta) return;
  BlockProduct(w.k + b * size, K, k_t, kBlock, kBlock, K, w.m + at);
  for (int64_t i = 0; i < kBlock; ++i) {
    for (int64_t j = 0; j < kBlock; j += kLanes) {
      float* m = w.m + at + i * kChunk + j;
      Store(m, Load(m) * w.beta[b * kBlock + i]);
    }
  }
  ScaleRows(w.k + b * size, w.total + a * K, K);
}

// Decay per channel.
void PrepareVector(const RecurrenceJob& job, int64_t t0, int64_t n, ChunkWork& w) {
  const int64_t K = w.K, blocks = (n + kBlock - 1) / kBlock, size = kBlock * K;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t t = t0 + b * kBlock, left = n - b * kBlock;
    CopyRows(job.q + t * job.q_stride, job.q_stride, left, job.dim_k, K, w.q_copy + b * size);
    CopyRows(job.k + t * job.k_stride, job.k_stride, left, job.dim_k, K, w.k + b * size);
    CopyRows(job.g + t * job.g_stride, job.g_stride, left, job.dim_k, K, w.decay + b * size);
    for (int64_t c = 0; c < size; c += kLanes) {
      Store(w.decay + b * size + c, Exp(Load(w.decay + b * size + c)));
    }
    TransposeBlock(w.k + b * size, K, w.k_t + b * size, kBlock);
    if (job.delta) {
      DiagonalTiles<true, 0, 0>(w, b);
    } else {
      DiagonalTiles<false, 0, 0>(w, b);
    }
    ScaleBlock(w, b);
    TransposeBlock(w.k_end + b * size, K, w.k_t + b * size, kBlock);
    for (int64_t a = b - 1; a >= 0; --a) OffDiagonalBlock(job, w, b, a);
  }
  for (int64_t i = 0; i < blocks * kBlock; ++i) {
    for (int64_t j = 0; j < (i / kBlock + 1) * kBlock; j += kLanes) {
      Store(w.p + i * kChunk + j, Load(w.p + i * kChunk + j) * job.scale);
    }
  }
  for (int64_t c = 0; c < K; c += kLanes) {
    Vec product = Load(w.total + c);
    for (int64_t b = 1; b < blocks; ++b) product *= Load(w.total + b * K + c);
    Store(w.s_decay + c, product);
  }
}

// x rows [0, 8) <- solution of (I + strict lower m) x = x, one vector of columns.
WEIR_INLINE void SolveEight(const float* m, float* x) {
  Vec rows[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    rows[i] = Load(x + i * kPanel);
#pragma GCC unroll 8
    for (int j = 0; j < i; ++j) rows[i] = Fnma(Set1(m[i * kChunk + j]), rows[j], rows[i]);
    Store(x + i * kPanel, rows[i]);
  }
}

// The same for a block of 16 rows and all columns of the panel.
template <int kVecs>
WEIR_INLINE void SolveBlock(const float* m, float* x) {
  static_assert(kBlock == 16);
#pragma GCC unroll 4
  for (int j = 0; j < kVecs; ++j) SolveEight(m, x + j * kLanes);
#pragma GCC unroll 4
  for (int j = 0; j < kVecs; ++j) {
    Vec acc[8][1];
    float* low = x + 8 * kPanel + j * kLanes;
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) acc[i][0] = Load(low + i * kPanel);
    MultiplyAdd<true>(acc, m + 8 * kChunk, kChunk, 1, x + j * kLanes, kPanel, 8);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) Store(low + i * kPanel, acc[i][0]);
    SolveEight(m + 8 * kChunk + 8, low);
  }
}

// x = V or the solution of the delta rule, for the panel's columns [col, col + cols).
template <int kVecs>
WEIR_INLINE void ComputeX(const RecurrenceJob& job, const ChunkWork& w, const float* s, int64_t t0,
                          int64_t n, int64_t col, int64_t cols) {
  constexpr int kRows = kRowsFor<kVecs>;
  const int last = static_cast<int>(cols - (kVecs - 1) * kLanes);
  for (int64_t i = 0; i < RoundUp(n, kBlock); i += kRows) {
    Vec acc[kRows][kVecs] = {};
    if (job.delta) MultiplyAdd<false>(acc, w.k + i * w.K, w.K, 1, s, kPanel, w.K);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const float* v = job.v + (t0 + i + r) * job.v_stride + col;
      const bool real = i + r < n;
      const float gamma = w.gamma[i + r], beta = w.beta[i + r];
#pragma GCC unroll 4
      for (int j = 0; j < kVecs; ++j) {
        Vec x = {};
        if (real) x = j + 1 < kVecs ? Load(v + j * kLanes) : LoadPartial(v + j * kLanes, last);
        if (job.delta) x = Fnma(acc[r][j], Set1(gamma), x) * beta;
        acc[r][j] = x;
      }
    }
    const int64_t block = i / kBlock * kBlock;
    if (job.delta && block > 0) {
      MultiplyAdd<true>(acc, w.m + i * kChunk, kChunk, 1, w.x, kPanel, block);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int j = 0; j < kVecs; ++j) Store(w.x + (i + r) * kPanel + j * kLanes, acc[r][j]);
    }
    if (job.delta && i + kRows == block + kBlock) {
      SolveBlock<kVecs>(w.m + block * kChunk + block, w.x + block * kPanel);
    }
  }
}

// One chunk for one panel of columns: x, the outputs, the new state.
template <int kVecs>
void PanelChunk(const RecurrenceJob& job, const ChunkWork& w, float* s, int64_t t0, int64_t n,
                int64_t col, int64_t cols) {
  constexpr int kRows = kRowsFor<kVecs>;
  const int last = static_cast<int>(cols - (kVecs - 1) * kLanes);
  const int64_t padded = RoundUp(n, kBlock);
  ComputeX<kVecs>(job, w, s, t0, n, col, cols);
  for (int64_t i = 0; i < n; i += kRows) {
    Vec acc[kRows][kVecs] = {};
    MultiplyAdd<false>(acc, w.q + i * w.q_row, w.q_row, 1, s, kPanel, w.K);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int j = 0; j < kVecs; ++j) acc[r][j] *= w.out_gamma[i + r];
    }
    MultiplyAdd<false>(acc, w.p + i * kChunk, kChunk, 1, w.x, kPanel, (i / kBlock + 1) * kBlock);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      if (i + r >= n) break;
      float* out = job.out + (t0 + i + r) * job.out_stride + col;
#pragma GCC unroll 4
      for (int j = 0; j + 1 < kVecs; ++j) Store(out + j * kLanes, acc[r][j]);
      StorePartial(out + (kVecs - 1) * kLanes, acc[r][kVecs - 1], last);
    }
  }
  if (!job.vector_decay && job.g) {
    for (int64_t i = 0; i < padded; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < kVecs; ++j) {
        float* x = w.x + i * kPanel + j * kLanes;
        Store(x, Load(x) * w.to_end[i]);
      }
    }
  }
  for (int64_t c = 0; c < w.K; c += kRows) {
    Vec acc[kRows][kVecs];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int j = 0; j < kVecs; ++j) {
        acc[r][j] = Load(s + (c + r) * kPanel + j * kLanes) * w.s_decay[c + r];
      }
    }
    MultiplyAdd<false>(acc, w.k_end + c, 1, w.K, w.x, kPanel, padded);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int j = 0; j < kVecs; ++j) Store(s + (c + r) * kPanel + j * kLanes, acc[r][j]);
    }
  }
}

// Moves columns [col, col + cols) between the state [V, K] and a panel [K, kPanel].
template <bool kToPanel>
void MovePanel(const RecurrenceJob& job, int64_t K, float* s, int64_t col, int64_t cols) {
  for (int64_t j = 0; j < kPanel; j += kLanes) {
    for (int64_t c = 0; c < K; c += kLanes) {
      const int64_t left = job.dim_k - c;
      const int width = left >= kLanes ? kLanes : left > 0 ? static_cast<int>(left) : 0;
      Vec rows[kLanes];
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) {
        if (kToPanel) {
          const float* from = job.state + (col + j + r) * job.dim_k + c;
          rows[r] = j + r < cols && !job.fresh ? LoadPartial(from, width) : Vec{};
        } else {
          rows[r] = Load(s + (c + r) * kPanel + j);
        }
      }
      Transpose(rows);
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) {
        if (kToPanel) {
          Store(s + (c + r) * kPanel + j, rows[r]);
        } else if (j + r < cols) {
          StorePartial(job.state + (col + j + r) * job.dim_k + c, rows[r], width);
        }
      }
    }
  }
}

// Rows of tokens lie far apart: no hardware prefetcher follows them.
WEIR_INLINE void PrefetchRows(const float* rows, int64_t stride, int64_t count, int64_t width) {
  for (int64_t i = 0; i < count; ++i, rows += stride) {
    for (int64_t c = 0; c < width; c += 16) __builtin_prefetch(rows + c, 0, 2);
  }
}

// Asks for the inputs of `n` tokens from t0 on.
WEIR_INLINE void PrefetchChunk(const RecurrenceJob& job, int64_t t0, int64_t n) {
  PrefetchRows(job.q + t0 * job.q_stride, job.q_stride, n, job.dim_k);
  PrefetchRows(job.k + t0 * job.k_stride, job.k_stride, n, job.dim_k);
  PrefetchRows(job.v + t0 * job.v_stride, job.v_stride, n, job.dim_v);
  if (job.vector_decay) PrefetchRows(job.g + t0 * job.g_stride, job.g_stride, n, job.dim_k);
}

ChunkWork CarveWork(const RecurrenceJob& job) {
  ChunkWork w;
  w.K = RoundUp(job.dim_k, kBlock);
  float* next = job.scratch;
  const auto take = [&next](int64_t count) {
    float* p = next;
    next += RoundUp(count, 16);
    return p;
  };
  w.s = take(RoundUp(job.dim_v, kPanel) * w.K);
  w.q_copy = take(kChunk * w.K);
  w.q = w.q_copy;
  w.q_row = w.K;
  w.k = take(kChunk * w.K);
  w.k_end = job.vector_decay ? take(kChunk * w.K) : w.k;
  w.k_t = take(kChunk * w.K);
  w.decay = job.vector_decay ? take(kChunk * w.K) : nullptr;
  w.total = job.vector_decay ? take(kChunk / kBlock * w.K) : nullptr;
  w.s_decay = take(w.K);
  w.p = take(kChunk * kChunk);
  w.m = take(kChunk * kChunk);
  w.x = take(kChunk * kPanel);
  for (int i = 0; i < kChunk; ++i) {
    w.gamma[i] = w.to_end[i] = 1.0f;
    w.out_gamma[i] = job.scale;
  }
  return w;
}

void RunChunks(const RecurrenceJob& job) {
  ChunkWork w = CarveWork(job);
  for (int64_t col = 0; col < job.dim_v; col += kPanel) {
    const int64_t cols = job.dim_v - col < kPanel ? job.dim_v - col : kPanel;
    MovePanel<true>(job, w.K, w.s + col * w.K, col, cols);
  }
  for (int64_t t = 0; t < job.tokens; t += kChunk) {
    const int64_t n = job.tokens - t < kChunk ? job.tokens - t : kChunk;
    for (int64_t i = 0; i < kChunk; ++i) {
      w.beta[i] = job.delta && i < n ? job.beta[(t + i) * job.beta_stride] : 0.0f;
    }
    if (job.vector_decay) {
      PrepareVector(job, t, n, w);
    } else {
      PrepareScalar(job, t, n, w);
    }
    const int64_t left = job.tokens - t - n;
    PrefetchChunk(job, t + n, left < kChunk ? left : kChunk);
    for (int64_t col = 0; col < job.dim_v; col += kPanel) {
      const int64_t cols = job.dim_v - col < kPanel ? job.dim_v - col : kPanel;
      float* s = w.s + col * w.K;
      const int64_t vecs = (cols + kLanes - 1) / kLanes;
      if (vecs == 1) PanelChunk<1>(job, w, s, t, n, col, cols);
      if (vecs == 2) PanelChunk<2>(job, w, s, t, n, col, cols);
      if constexpr (kPanelVecs >= 3) {
        if (vecs == 3) PanelChunk<3>(job, w, s, t, n, col, cols);
      }
      if constexpr (kPanelVecs >= 4) {
        if (vecs == 4) PanelChunk<4>(job, w, s, t, n, col, cols);
      }
    }
  }
  for (int64_t col = 0; col < job.dim_v; col += kPanel) {
    const int64_t cols = job.dim_v - col < kPanel ? job.dim_v - col : kPanel;
    MovePanel<false>(job, w.K, w.s + col * w.K, col, cols);
  }
}

void RunJob(const RecurrenceJob& job) {
  if (job.tokens <= kStepTokens) {
    RunStep(job);
  } else {
    RunChunks(job);
  }
}

}  // namespace
}  // namespace weir::kernels
