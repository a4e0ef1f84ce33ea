#include <algorithm>
#include <string>

#include "core/clock.h"
#include "scheduler/scheduler.h"
#include "server/caller.h"
#include "server/error_mapping.h"
#include "server/served_model.h"
#include "server/server_metrics.h"
#include "server/service_context.h"
#include "server/services.h"
#include "text/chat_template.h"
#include "weir/v1/info.grpc.pb.h"

namespace weir::server {
namespace {

void FillModel(const ServedModel& from, v1::ModelInfo* to) {
  to->set_name(from.name);
  to->set_family(from.family);
  to->set_vocab_size(from.limits.vocab_size);
  to->set_hidden_size(from.hidden_size);
  to->set_num_layers(from.num_layers);
  for (const auto& [mixer, count] : from.layers_by_mixer) {
    (*to->mutable_layers_by_mixer())[mixer] = count;
  }
  to->set_max_position(from.limits.max_position);
  to->set_compute_dtype(from.compute_dtype);
  to->set_num_parameters(from.num_parameters);
  to->set_weight_bytes(from.weight_bytes);
  to->set_state_bytes_per_sequence(from.limits.layout.slot_bytes);
  to->set_kv_bytes_per_token(from.limits.layout.KvBytesPerToken());
  to->set_page_tokens(from.limits.layout.page_bytes == 0 ? 0 : from.limits.layout.page_tokens);
  to->mutable_bos_token_ids()->Assign(from.bos_ids.begin(), from.bos_ids.end());
  to->mutable_eos_token_ids()->Assign(from.eos_ids.begin(), from.eos_ids.end());
  to->set_has_tokenizer(from.tokenizer != nullptr);
  if (from.chat_template != nullptr) {
    for (const std::string& name : from.chat_template->names()) to->add_template_names(name);
    const std::string_view source = from.chat_template->source();
    to->set_chat_template(std::string(source));
    const text::AnswerStyle style = from.answer_style;
    if (style.tools != text::ToolStyle::kNone) {
      to->set_tool_parser(std::string(text::ToolStyleName(style.tools)));
    }
    if (style.reasoning != text::ReasoningStyle::kNone) {
      to->set_reasoning_parser(std::string(text::ReasoningStyleName(style.reasoning)));
    }
  }
  v1::SamplingOptions* sampling = to->mutable_default_sampling();
  sampling->set_temperature(from.sampling.temperature);
  sampling->set_top_k(from.sampling.top_k);
  sampling->set_top_p(from.sampling.top_p);
  sampling->set_min_p(from.sampling.min_p);
  sampling->set_repetition_penalty(from.sampling.repetition_penalty);
  sampling->set_presence_penalty(0);
  sampling->set_frequency_penalty(0);
  to->set_constraints(from.tokenizer != nullptr && !from.eos_ids.empty());
  for (const std::string& tensor : from.skipped_tensors) to->add_skipped_tensors(tensor);
}

void FillLimits(const ServiceContext& context, v1::ServerLimits* to) {
  const scheduler::ExecutorLimits& model = context.model->limits;
  to->set_slots(model.cache.slots);
  to->set_pages(model.layout.page_bytes == 0 ? 0 : model.cache.pages);
  to->set_max_position(model.max_position);
  to->set_max_step_tokens(model.max_step_tokens);
  to->set_max_step_sequences(model.max_step_sequences);
  to->set_max_queued_requests(context.max_queued_requests);
  to->set_max_queued_tokens(context.max_queued_tokens);
  to->set_max_choices(context.limits.max_choices);
  to->set_default_max_tokens(context.limits.default_max_tokens);
  to->set_max_logprobs(context.limits.max_logprobs);
  to->set_max_stop_strings(context.limits.max_stop_strings);
  to->set_max_logit_bias(context.limits.max_logit_bias);
  to->set_max_request_bytes(context.max_request_bytes);
  to->set_stream_buffer_tokens(context.stream_buffer_tokens);
  to->set_max_deadline_ms(context.max_deadline_us / 1000);
  to->set_drain_ms(context.drain_us / 1000);
}

void FillLoad(const ServiceContext& context, v1::ServerLoad* to) {
  const scheduler::SchedulerStats stats = context.scheduler->stats();
  to->set_queued_requests(stats.queued_requests);
  to->set_running_sequences(stats.running_sequences);
  to->set_slots_used(stats.slots_used);
  to->set_pages_used(stats.pages_used);
  to->set_steps(stats.steps);
  to->set_open_streams(context.open_streams.count());
  to->set_since_last_step_ms(
      stats.steps == 0 ? -1
                       : std::max<int64_t>(0, context.clock->NowUs() - stats.last_step_us) / 1000);
}

using Base = v1::ModelService::WithCallbackMethod_GetModel<
    v1::ModelService::WithCallbackMethod_GetServerInfo<v1::ModelService::Service>>;

class ModelServiceImpl final : public Base {
 public:
  explicit ModelServiceImpl(ServiceContext* context) : context_(context) {
    FillModel(*context->model, model_.mutable_model());
    FillLimits(*context, model_.mutable_limits());
  }

  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* rpc, const v1::GetModelRequest*,
                                     v1::GetModelResponse* response) override {
    const absl::Status caller = CheckCaller(*context_, *rpc);
    if (caller.ok()) *response = model_;
    return End(rpc, Method::kGetModel, caller);
  }

  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext* rpc,
                                          const v1::GetServerInfoRequest*,
                                          v1::GetServerInfoResponse* response) override {
    const absl::Status caller = CheckCaller(*context_, *rpc);
    if (!caller.ok()) return End(rpc, Method::kGetServerInfo, caller);
    response->set_version(WEIR_VERSION);
    response->set_uptime_ms((context_->clock->NowUs() - context_->ready_us) / 1000);
    response->set_state(context_->draining ? v1::SERVING_STATE_DRAINING
                                           : v1::SERVING_STATE_SERVING);
    FillLimits(*context_, response->mutable_limits());
    FillLoad(*context_, response->mutable_load());
    return End(rpc, Method::kGetServerInfo, absl::OkStatus());
  }

 private:
  grpc::ServerUnaryReactor* End(grpc::CallbackServerContext* rpc, Method method,
                                const absl::Status& status) {
    context_->metrics->CallEnded(method, status.code());
    grpc::ServerUnaryReactor* reactor = rpc->DefaultReactor();
    reactor->Finish(ToGrpc(status));
    return reactor;
  }

  ServiceContext* const context_;
  v1::GetModelResponse model_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeModelService(ServiceContext* context) {
  return std::make_unique<ModelServiceImpl>(context);
}

}  // namespace weir::server
