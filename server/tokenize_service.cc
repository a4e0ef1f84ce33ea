#include <functional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/error_details.h"
#include "server/caller.h"
#include "server/error_mapping.h"
#include "server/response_stream.h"
#include "server/served_model.h"
#include "server/server_metrics.h"
#include "server/service_context.h"
#include "server/services.h"
#include "server/wire.h"
#include "server/work_pool.h"
#include "text/tokenizer.h"
#include "weir/v1/tokenize.grpc.pb.h"

namespace weir::server {
namespace {

// Raw for the same reason as Generate: its strings are checked here.
using Base = v1::TokenizerService::WithRawCallbackMethod_Tokenize<
    v1::TokenizerService::WithCallbackMethod_Detokenize<v1::TokenizerService::Service>>;

class TokenizerServiceImpl final : public Base {
 public:
  explicit TokenizerServiceImpl(ServiceContext* context) : context_(context) {}

  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* rpc,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override {
    return OnTextThread(
        rpc, Method::kTokenize, request->Length(), [this, request, response]() -> absl::Status {
          v1::TokenizeRequest message;
          RETURN_IF_ERROR(ParseMessage(*request, &message));
          ASSIGN_OR_RETURN(const PromptSource source, ValidateTokenize(message, *context_->model));
          v1::TokenizeResponse answer;
          ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                           EncodePrompt(source, *context_->model, answer.mutable_rendered()));
          answer.mutable_ids()->Assign(ids.begin(), ids.end());
          for (size_t i = 0; message.pieces() && i < ids.size(); ++i) {
            answer.add_pieces(TokenPiece(*context_->model->tokenizer, ids[i]));
          }
          SerializeMessage(answer, response);
          return absl::OkStatus();
        });
  }

  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* rpc,
                                       const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override {
    return OnTextThread(
        rpc, Method::kDetokenize, request->ByteSizeLong(),
        [this, request, response]() -> absl::Status {
          const ServedModel& model = *context_->model;
          if (model.tokenizer == nullptr) {
            return MissingPrecondition("TOKENIZER", model.name,
                                       absl::StrCat("the model ", model.name,
                                                    " was loaded without a "
                                                    "tokenizer, so it cannot detokenize"));
          }
          const auto& ids = request->ids();
          RETURN_IF_ERROR(CheckIds("ids", ids.data(), static_cast<size_t>(ids.size()),
                                   model.limits.vocab_size));
          // Rows of the embedding past the tokenizer's vocabulary are padding and have no text.
          std::vector<int32_t> known;
          known.reserve(static_cast<size_t>(ids.size()));
          for (int32_t id : ids) {
            if (id < model.tokenizer->vocab_size()) known.push_back(id);
          }
          const bool skip =
              request->has_skip_special_tokens() ? request->skip_special_tokens() : true;
          ASSIGN_OR_RETURN(*response->mutable_text(), model.tokenizer->Decode(known, skip));
          return absl::OkStatus();
        });
  }

 private:
  grpc::ServerUnaryReactor* OnTextThread(grpc::CallbackServerContext* rpc, Method method,
                                         size_t bytes, std::function<absl::Status()> work) {
    grpc::ServerUnaryReactor* reactor = rpc->DefaultReactor();
    const auto end = [this, reactor, method](const absl::Status& status) {
      context_->metrics->CallEnded(method, status.code());
      reactor->Finish(ToGrpc(status));
    };
    if (const absl::Status caller = CheckCaller(*context_, *rpc); !caller.ok()) {
      end(caller);
      return reactor;
    }
    const bool taken =
        context_->text_pool->TryAdd([work = std::move(work), end] { end(work()); }, bytes);
    if (!taken) {
      end(Exhausted("text_queue", "too many prompts wait to be tokenized; try again later",
                    /*retry_after_ms=*/1000));
    }
    return reactor;
  }

  ServiceContext* const context_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeTokenizerService(ServiceContext* context) {
  return std::make_unique<TokenizerServiceImpl>(context);
}

}  // namespace weir::server
