// A mixer: what moves information across tokens in a layer. One file per kind of mathematics; the
// kinds are told apart by their parameter structs (model/description.h).
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "core/status.h"
#include "core/tensor.h"
#include "kernels/linear_mixer.h"
#include "kernels/matmul.h"
#include "kernels/recurrence.h"
#include "model/batch.h"
#include "model/description.h"
#include "model/weights.h"

namespace weir::model {

// What a mixer takes, known before any weight is read.
struct MixerNeeds {
  int64_t slot_bytes = 0;          // its part of a slot
  int64_t kv_bytes_per_token = 0;  // its part of a page, per token of the page
  int64_t scratch_floats = 0;      // per token, at most, while Forward runs
  // Beside the matrix products, per token: of the state, and per entry that attention looks at.
  double state_flops = 0;
  double entry_flops = 0;
  int64_t window = 0;  // attention: entries looked at, at most; 0: all
};

// Where its parts of the memory begin.
struct MixerPlace {
  std::string prefix;  // of its tensors, our names
  int hidden = 0;
  int64_t slot_offset = 0;  // bytes from the slot's begin, aligned to kStateAlignment
  int64_t page_offset = 0;  // bytes from the page's begin
  StateTypes types;
};

// The largest step of an executor.
struct StepLimits {
  int64_t tokens = 0, sequences = 0, max_entries = 0;
  DType activations = DType::kF32;
};

class Mixer {
 public:
  virtual ~Mixer() = default;
  // out = mixer(x), both [tokens, D]; x is normed. Reads and advances the states of the batch's
  // slots. Products of Matrices() alone read x and write out.
  virtual void Forward(const StepContext& step, const kernels::MatMulInput& x,
                       const kernels::MatMulOutput& out) const = 0;
  // Bytes of StepContext::op_scratch that Forward takes on a GPU.
  virtual int64_t OpScratchBytes(const StepLimits& limits, Stream stream) const = 0;
  // Its large matrices, for tuning.
  virtual std::vector<const kernels::PackedMatrix*> Matrices() const = 0;
};

// Collects the tensors of one mixer, layer or model.
class TensorList {
 public:
  TensorList(std::vector<TensorNeed>* all, std::string prefix, int layer, int mixer)
      : all_(all), prefix_(std::move(prefix)), layer_(layer), mixer_(mixer) {}
  void Add(const std::string& local, std::vector<int64_t> shape, TensorNeed::Role role);

 private:
  std::vector<TensorNeed>* all_;
  std::string prefix_;
  int layer_, mixer_;
};

// Dispatch on the kind.
void ListMixerTensors(const MixerDescription& mixer, int hidden, TensorList* list);
MixerNeeds NeedsOf(const MixerDescription& mixer, int hidden, const StateTypes& types);
absl::StatusOr<std::unique_ptr<Mixer>> MakeMixer(const MixerDescription& mixer,
                                                 const MixerPlace& place, WeightReader& weights);

// One set of overloads per kind, in the file of the kind.
//
// gated_linear.cc: gla, simple_gla, retnet
void ListTensors(const GatedLinearParams& params, int hidden, TensorList* list);
MixerNeeds Needs(const GatedLinearParams& params, int hidden, const StateTypes& types);
absl::StatusOr<std::unique_ptr<Mixer>> Make(const GatedLinearParams& params,
                                            const MixerPlace& place, WeightReader& weights);
//
// linear_attn.cc
void ListTensors(const LinearAttnParams& params, int hidden, TensorList* list);
MixerNeeds Needs(const LinearAttnParams& params, int hidden, const StateTypes& types);
absl::StatusOr<std::unique_ptr<Mixer>> Make(const LinearAttnParams& params, const MixerPlace& place,
                                            WeightReader& weights);
//
// delta.cc: delta_net, gated_deltanet, kda
void ListTensors(const DeltaParams& params, int hidden, TensorList* list);
MixerNeeds Needs(const DeltaParams& params, int hidden, const StateTypes& types);
absl::StatusOr<std::unique_ptr<Mixer>> Make(const DeltaParams& params, const MixerPlace& place,
                                            WeightReader& weights);
//
// mamba2.cc
void ListTensors(const Mamba2Params& params, int hidden, TensorList* list);
MixerNeeds Needs(const Mamba2Params& params, int hidden, const StateTypes& types);
absl::StatusOr<std::unique_ptr<Mixer>> Make(const Mamba2Params& params, const MixerPlace& place,
                                            WeightReader& weights);
//
// attention.cc: attn, local_attn
void ListTensors(const AttnParams& params, int hidden, TensorList* list);
MixerNeeds Needs(const AttnParams& params, int hidden, const StateTypes& types);
absl::StatusOr<std::unique_ptr<Mixer>> Make(const AttnParams& params, const MixerPlace& place,
                                            WeightReader& weights);
//
// gated_conv.cc: short_conv
void ListTensors(const GatedConvParams& params, int hidden, TensorList* list);
MixerNeeds Needs(const GatedConvParams& params, int hidden, const StateTypes& types);
absl::StatusOr<std::unique_ptr<Mixer>> Make(const GatedConvParams& params, const MixerPlace& place,
                                            WeightReader& weights);

// Runs the recurrence over the batch, each sequence in the form that its own run length picks: one
// token the step form, more the chunk form. Fills in sequences and state of `args`.
void RunRecurrence(kernels::RecurrenceArgs args, const StepContext& step, int64_t state_offset);
// Op scratch of that, for `heads` heads of [V, K] that are all of one type.
int64_t RecurrenceScratch(kernels::Decay decay, kernels::Update update, int heads, int heads_qk,
                          int64_t key_dim, int64_t value_dim, const StepLimits& limits,
                          Stream stream);
// Sequences and state of a fused op over the batch.
void SetBatch(const StepContext& step, int64_t state_offset, kernels::LinearMixerArgs* args);

// The short convolution of q, k and v (stacked columns [q | k | v]) with its window in the slot.
class QkvConv {
 public:
  static void ListTensors(const ConvParams& conv, int64_t q, int64_t k, int64_t v,
                          TensorList* list);
  static int64_t SlotBytes(const ConvParams& conv, int64_t channels, DType window);
  static absl::StatusOr<QkvConv> Make(const ConvParams& conv, const MixerPlace& place,
                                      WeightReader& weights);
  bool enabled() const { return weight_.defined(); }
  // [channels, taps], or undefined.
  TensorView shape() const { return enabled() ? weight_.matrix(channels_) : TensorView(); }
  DType window() const { return window_; }
  // In place on qkv [tokens, channels].
  void Forward(const StepContext& step, TensorView qkv, kernels::Activation activation) const;
  // As part of a fused op.
  void Describe(const StepContext& step, kernels::LinearMixerArgs* args) const;

 private:
  FloatVector weight_, bias_;
  int64_t channels_ = 0;
  int64_t slot_offset_ = 0;
  DType window_ = DType::kF32;
};

// Columns [begin, begin + heads * dim) of a projection as [tokens, heads, dim].
inline TensorView Heads(TensorView projection, int64_t begin, int64_t heads, int64_t dim) {
  return projection.Columns(begin, heads * dim).Reshape({projection.size(0), heads, dim});
}

}  // namespace weir::model
