// The CUDA forms of the ops, by header of the contract: same arguments, same meaning, on
// stream.native. Defined in kernels/cuda/*.cu; referred to only where cuda::kBuilt.
#pragma once

#include "core/cuda/runtime.h"
#include "kernels/attention.h"
#include "kernels/copy.h"
#include "kernels/device_sampler.h"
#include "kernels/linear_mixer.h"
#include "kernels/machine_rates.h"
#include "kernels/matmul.h"
#include "kernels/norm.h"
#include "kernels/pointwise.h"
#include "kernels/recurrence.h"
#include "kernels/sample.h"
#include "kernels/short_conv.h"
#include "kernels/step_inputs.h"

namespace weir::kernels::gpu {

// norm.h
void RmsNorm(const RmsNormArgs& args, Stream stream);
void LayerNorm(const LayerNormArgs& args, Stream stream);
void AddRmsNorm(const AddRmsNormArgs& args, Stream stream);
void GatedRmsNorm(const GatedRmsNormArgs& args, Stream stream);
void L2Norm(const L2NormArgs& args, Stream stream);

// pointwise.h
void GateMultiply(TensorView gate, TensorView up, Activation activation, TensorView out,
                  Stream stream);
void Activate(TensorView x, Activation activation, TensorView out, Stream stream);
void Multiply(TensorView a, TensorView b, TensorView out, Stream stream);
void AddScaled(TensorView h, TensorView delta, float scale, Stream stream);
void ScatterAddScaled(TensorView h, TensorView delta, TensorView rows, TensorView weight,
                      Stream stream);
void GatherRows(TensorView x, TensorView rows, TensorView out, Stream stream);
void EmbeddingLookup(TensorView table, TensorView ids, float scale, TensorView out, Stream stream);
void LogDecay(const LogDecayArgs& args, Stream stream);
void Beta(TensorView x, float scale, TensorView out, Stream stream);
void Mamba2Dt(const Mamba2DtArgs& args, Stream stream);
void AddSkip(TensorView xs, TensorView d, TensorView out, Stream stream);
void EluPlusOne(TensorView x, Stream stream);
void DivideBySum(TensorView x, float eps, Stream stream);
void DivideByLast(TensorView x, float eps, TensorView out, Stream stream);

// short_conv.h
void ShortConv(const ShortConvArgs& args, Stream stream);

// recurrence.h
void RecurrenceChunk(const RecurrenceArgs& args, Stream stream);
void RecurrenceStep(const RecurrenceArgs& args, Stream stream);
int64_t RecurrenceChunkScratchBytes(const RecurrenceArgs& args, int64_t tokens, int64_t sequences);

// linear_mixer.h
bool LinearMixerSupported(const LinearMixerArgs& args);
int64_t LinearMixerScratchBytes(const LinearMixerArgs& args, int64_t tokens, int64_t sequences);
void LinearMixer(const LinearMixerArgs& args, Stream stream);

// matmul.h
absl::StatusOr<PackedMatrix> PackStacked(const TensorView* weights, int count, DType compute,
                                         Stream stream);
absl::StatusOr<PackedMatrix> RandomMatrix(int64_t out, int64_t in, DType compute, uint64_t seed,
                                          float stddev, Stream stream);
void MatMul(const MatMulInput& x, const PackedMatrix& weight, TensorView bias,
            const MatMulOutput& y, Stream stream);
bool MatMulJoins(const PackedMatrix& weight, DType activations, int64_t rows);
void MatMulGated(const MatMulInput& x, const PackedMatrix& weight, TensorView bias,
                 Activation activation, TensorView both, TensorView y, Stream stream);
void TuneMatMul(const PackedMatrix& weight, absl::Span<const int64_t> rows, Stream stream);
void FinishPacking();
absl::Status MatMulLibrary();

// attention.h
int64_t AttentionScratchBytes(int heads, int kv_heads, int head_dim, int64_t tokens,
                              int64_t sequences, int64_t max_entries, DType activation);
void PagedAttention(const AttentionArgs& args, const PagedKv& kv, Stream stream);
void WindowAttention(const AttentionArgs& args, const RingKv& ring, Stream stream);
void Rotary(const RotaryArgs& args, Stream stream);

// device_sampler.h
absl::StatusOr<std::unique_ptr<DeviceSampler>> MakeDeviceSampler(
    const DeviceSampler::Limits& limits, int64_t history_capacity, Stream stream);

// step_inputs.h
void FeedPrevious(TensorView ids, TensorView sources, TensorView previous, Stream stream);
void ScatterInts(TensorView to, TensorView indices, TensorView values, Stream stream);

// sample.h
void Sample(TensorView logits, absl::Span<const SampleRow> rows, absl::Span<SampleResult> results,
            Stream stream);
void LogProbs(TensorView logits, absl::Span<const int32_t> targets,
              absl::Span<SampleResult> results, Stream stream);

// copy.h
void CopyBlocks(void* base, int64_t block_bytes, absl::Span<const BlockCopy> copies, Stream stream);

// machine_rates.h
double MeasureReadBandwidth(Stream stream);
double MeasureMatrixRate(DType compute, Stream stream);

}  // namespace weir::kernels::gpu
