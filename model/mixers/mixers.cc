#include "absl/strings/str_cat.h"
#include "kernels/pointwise.h"
#include "model/mixers/mixer.h"

namespace weir::model {

void TensorList::Add(const std::string& local, std::vector<int64_t> shape, TensorNeed::Role role) {
  TensorNeed need;
  need.name = absl::StrCat(prefix_, local);
  need.shape = std::move(shape);
  need.role = role;
  need.layer = layer_;
  need.mixer = mixer_;
  need.local = local;
  all_->push_back(std::move(need));
}

void ListMixerTensors(const MixerDescription& mixer, int hidden, TensorList* list) {
  std::visit([&](const auto& params) { ListTensors(params, hidden, list); }, mixer.params);
}

MixerNeeds NeedsOf(const MixerDescription& mixer, int hidden, const StateTypes& types) {
  return std::visit([&](const auto& params) { return Needs(params, hidden, types); }, mixer.params);
}

absl::StatusOr<std::unique_ptr<Mixer>> MakeMixer(const MixerDescription& mixer,
                                                 const MixerPlace& place, WeightReader& weights) {
  return std::visit([&](const auto& params) { return Make(params, place, weights); }, mixer.params);
}

void RunRecurrence(kernels::RecurrenceArgs args, const StepContext& step, int64_t state_offset) {
  const BatchView& batch = step.batch;
  args.state = step.state.slots + state_offset;
  args.slot_stride_bytes = step.state.slot_bytes;
  const auto take = [&](int first, int count) {
    args.offsets = batch.offsets.Rows(first, count + 1);
    args.slots = batch.slots.Rows(first, count);
    args.fresh = batch.fresh.Rows(first, count);
    args.host_offsets = batch.host_offsets == nullptr ? nullptr : batch.host_offsets + first;
  };
  args.scratch = step.op_scratch;
  if (batch.singles > 0) {
    take(0, batch.singles);
    kernels::RecurrenceStep(args, step.stream);
  }
  if (batch.singles < batch.sequences) {
    take(batch.singles, batch.sequences - batch.singles);
    kernels::RecurrenceChunk(args, step.stream);
  }
}

int64_t RecurrenceScratch(kernels::Decay decay, kernels::Update update, int heads, int heads_qk,
                          int64_t key_dim, int64_t value_dim, const StepLimits& limits,
                          Stream stream) {
  // Only shapes and flags are read.
  const auto shape = [&](int64_t count, int64_t dim) {
    return TensorView(nullptr, limits.activations, {limits.tokens, count, dim});
  };
  kernels::RecurrenceArgs args;
  args.decay = decay;
  args.update = update;
  args.heads = heads;
  args.q = args.k = shape(heads_qk, key_dim);
  args.v = args.out = shape(heads, value_dim);
  return kernels::RecurrenceChunkScratchBytes(args, limits.tokens, limits.sequences, stream);
}

void SetBatch(const StepContext& step, int64_t state_offset, kernels::LinearMixerArgs* args) {
  args->offsets = step.batch.offsets;
  args->slots = step.batch.slots;
  args->fresh = step.batch.fresh;
  args->host_offsets = step.batch.host_offsets;
  args->singles = step.batch.singles;
  args->state = step.state.slots + state_offset;
  args->slot_stride_bytes = step.state.slot_bytes;
  args->scratch = step.op_scratch;
}

void QkvConv::ListTensors(const ConvParams& conv, int64_t q, int64_t k, int64_t v,
                          TensorList* list) {
  if (!conv.enabled) return;
  const std::pair<const char*, int64_t> parts[] = {{"q", q}, {"k", k}, {"v", v}};
  for (const auto& [name, width] : parts) {
    list->Add(absl::StrCat(name, "_conv1d.weight"), {width, 1, conv.size}, TensorNeed::Role::kConv);
    if (conv.bias) list->Add(absl::StrCat(name, "_conv1d.bias"), {width}, TensorNeed::Role::kBias);
  }
}

int64_t QkvConv::SlotBytes(const ConvParams& conv, int64_t channels, DType window) {
  return conv.enabled ? AlignState((conv.size - 1) * channels * DTypeSize(window)) : 0;
}

absl::StatusOr<QkvConv> QkvConv::Make(const ConvParams& conv, const MixerPlace& place,
                                      WeightReader& weights) {
  QkvConv made;
  if (!conv.enabled) return made;
  std::vector<float> weight, bias;
  for (const char* name : {"q", "k", "v"}) {
    const std::string prefix = absl::StrCat(place.prefix, name, "_conv1d.");
    ASSIGN_OR_RETURN(const std::vector<float> taps, weights.Values(prefix + "weight"));
    weight.insert(weight.end(), taps.begin(), taps.end());
    if (conv.bias) {
      ASSIGN_OR_RETURN(const std::vector<float> values, weights.Values(prefix + "bias"));
      bias.insert(bias.end(), values.begin(), values.end());
    }
  }
  made.channels_ = static_cast<int64_t>(weight.size()) / conv.size;
  ASSIGN_OR_RETURN(made.weight_, FloatVector::From(weight, weights.stream()));
  ASSIGN_OR_RETURN(made.bias_, FloatVector::From(bias, weights.stream()));
  made.slot_offset_ = place.slot_offset;
  made.window_ = place.types.window;
  return made;
}

void QkvConv::Forward(const StepContext& step, TensorView qkv,
                      kernels::Activation activation) const {
  kernels::ShortConvArgs args;
  args.x = qkv;
  args.out = qkv;
  args.weight = weight_.matrix(channels_);
  args.bias = bias_.view();
  args.activation = activation;
  args.offsets = step.batch.offsets;
  args.slots = step.batch.slots;
  args.fresh = step.batch.fresh;
  args.window_dtype = window_;
  args.state = step.state.slots + slot_offset_;
  args.slot_stride_bytes = step.state.slot_bytes;
  kernels::ShortConv(args, step.stream);
}

void QkvConv::Describe(const StepContext& step, kernels::LinearMixerArgs* args) const {
  if (!enabled()) return;
  args->conv_weight = weight_.matrix(channels_);
  args->conv_bias = bias_.view();
  args->window = step.state.slots + slot_offset_;
  args->window_dtype = window_;
}

}  // namespace weir::model
