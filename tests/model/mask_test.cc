// Constrained sequences on both devices: the forward pass does not wait for masks, the choice does,
// and what is chosen under a mask is what is chosen with all other ids forbidden.
#include <gtest/gtest.h>

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <map>
#include <mutex>
#include <numeric>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "core/check.h"
#include "core/cuda/runtime.h"
#include "model/model.h"
#include "scheduler/executor.h"

namespace weir::model {
namespace {

using scheduler::SamplingParams;
using scheduler::SequenceInput;
using scheduler::StepResult;

// Masks that somebody else makes, later.
class LateMask final : public scheduler::PendingMask {
 public:
  absl::Span<const uint32_t> Await(uint64_t draw) override {
    std::unique_lock lock(mutex_);
    ready_.wait(lock, [&] { return masks_.contains(draw); });
    return masks_.at(draw);
  }
  void Set(uint64_t draw, std::vector<uint32_t> mask) {
    {
      std::lock_guard lock(mutex_);
      masks_[draw] = std::move(mask);
    }
    ready_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable ready_;
  std::map<uint64_t, std::vector<uint32_t>> masks_;
};

// A third of the ids, by what came before; never the empty set.
std::vector<int32_t> Allowed(const std::vector<int32_t>& answer, int32_t vocab) {
  uint64_t hash = 99;
  for (const int32_t token : answer) hash = (hash ^ static_cast<uint64_t>(token)) * 0x100000001B3u;
  std::vector<int32_t> ids;
  for (int32_t id = 0; id < vocab; ++id) {
    if ((hash ^ static_cast<uint64_t>(id)) * 0x9E3779B97F4A7C15u >> 40 < (1 << 24) / 3) {
      ids.push_back(id);
    }
  }
  if (ids.empty()) ids.push_back(0);
  return ids;
}

std::vector<uint32_t> MaskOf(const std::vector<int32_t>& ids, int32_t vocab) {
  std::vector<uint32_t> mask(static_cast<size_t>((vocab + 31) / 32));
  for (const int32_t id : ids) mask[static_cast<size_t>(id / 32)] |= uint32_t{1} << (id % 32);
  return mask;
}

class MaskTest : public testing::TestWithParam<std::tuple<DeviceChoice, std::string>> {
 protected:
  void SetUp() override {
    const auto [device, name] = GetParam();
    if (device == DeviceChoice::kCuda) {
      const auto opened = cuda::Open();
      if (!opened.ok() && std::getenv("WEIR_REQUIRE_GPU") != nullptr) FAIL() << opened.status();
      if (!opened.ok()) GTEST_SKIP() << "no GPU: " << opened.status().message();
    }
    const char* tree = std::getenv("WEIR_TREE");  // it may have moved since the build
    LoadOptions options;
    options.device = device;
    options.dtype = ComputeDType::kF32;
    options.slots = 6;
    options.pages = 120;
    options.max_step_tokens = 64;
    options.max_step_sequences = 6;
    options.threads = 2;
    auto model = LoadModel(
        std::string(tree != nullptr ? tree : WEIR_SOURCE_DIR) + "/tests/golden/" + name, options);
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = std::move(*model);
    executor_ = model_->executor();
    vocab_ = executor_->limits().vocab_size;
    for (int slot = 0; slot < 6; ++slot) {
      pages_.emplace_back(20);
      std::iota(pages_.back().begin(), pages_.back().end(), 20 * slot);
    }
    params_.temperature = 1.3f;
    params_.seed = 5;
    params_.logprobs = 3;
    params_.presence_penalty = 0.4f;
  }

  SequenceInput Input(int slot, int position, absl::Span<const int32_t> tokens, uint64_t draw,
                      const std::vector<int32_t>& answer) {
    SequenceInput input;
    input.sequence = 100 + static_cast<uint64_t>(slot);
    input.slot = slot;
    input.pages = pages_[static_cast<size_t>(slot)];
    input.position = position;
    input.tokens = tokens;
    input.sample = true;
    input.sampling = &params_;
    input.draw = draw;
    input.prompt = prompt_;
    input.generated = answer;
    return input;
  }

  struct Answer {
    std::vector<int32_t> tokens;
    std::vector<scheduler::TokenLogprob> logprobs;
  };

  // One token at a time, all other ids forbidden: no mask involved.
  Answer ByForbidding(int slot) {
    Answer answer;
    for (uint64_t draw = 0; draw < kTokens; ++draw) {
      const std::vector<int32_t> allowed = Allowed(answer.tokens, vocab_);
      std::vector<int32_t> forbidden;
      for (int32_t id = 0; id < vocab_; ++id) {
        if (!std::binary_search(allowed.begin(), allowed.end(), id)) forbidden.push_back(id);
      }
      const int position = draw == 0 ? 0 : static_cast<int>(prompt_.size() + draw - 1);
      const absl::Span<const int32_t> tokens =
          draw == 0 ? absl::MakeConstSpan(prompt_) : absl::MakeConstSpan(&answer.tokens.back(), 1);
      SequenceInput input = Input(slot, position, tokens, draw, answer.tokens);
      input.forbidden = forbidden;
      executor_->Submit({{input}});
      StepResult result = executor_->Wait();
      answer.tokens.push_back(result.outputs[0].chosen.token);
      answer.logprobs.push_back(std::move(result.outputs[0].chosen));
    }
    return answer;
  }

  // As a server does it: two steps in flight, masks made when the token before is known; beside
  // `free` sequences without any.
  Answer ByMask(int slot, int free) {
    Answer answer;
    LateMask mask;
    std::thread maker;
    const std::vector<int32_t> nothing = {-1};
    std::deque<std::vector<int32_t>> histories;  // each lives until its step is done
    const auto submit = [&](uint64_t draw) {
      histories.push_back(answer.tokens);
      std::vector<SequenceInput> inputs;
      for (int i = 0; i <= free; ++i) {
        const int position = draw == 0 ? 0 : static_cast<int>(prompt_.size() + draw - 1);
        const absl::Span<const int32_t> tokens = draw == 0 ? prompt_ : nothing;
        inputs.push_back(Input(i == 0 ? slot : slot - i, position, tokens, draw, {}));
        inputs.back().generated = histories.back();
        inputs.back().feed_previous = draw > 0;
        if (i == 0) inputs.back().mask = &mask;
      }
      executor_->Submit({std::move(inputs)});
    };
    // Not before the step that needs it is under way.
    const auto make = [&](uint64_t draw) {
      if (maker.joinable()) maker.join();
      maker = std::thread([&mask, draw, made = MaskOf(Allowed(answer.tokens, vocab_), vocab_)] {
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
        mask.Set(draw, made);
      });
    };
    submit(0);
    make(0);
    for (uint64_t draw = 1; draw <= kTokens; ++draw) {
      if (draw < kTokens) submit(draw);
      StepResult result = executor_->Wait();
      EXPECT_GE(result.mask_wait_us, 0);
      answer.tokens.push_back(result.outputs[0].chosen.token);
      answer.logprobs.push_back(std::move(result.outputs[0].chosen));
      if (draw < kTokens) make(draw);
    }
    maker.join();
    return answer;
  }

  static constexpr uint64_t kTokens = 12;
  std::unique_ptr<LoadedModel> model_;
  scheduler::Executor* executor_ = nullptr;
  int32_t vocab_ = 0;
  SamplingParams params_;
  std::vector<std::vector<int32_t>> pages_;
  const std::vector<int32_t> prompt_ = {3, 1, 4, 1, 5, 9, 2, 6};
};

TEST_P(MaskTest, AMaskForbidsTheOthersWhateverIsInFlightAndInTheBatch) {
  const Answer expected = ByForbidding(0);
  const int64_t allocations = cuda::Allocations().allocations;
  for (const int free : {0, 2, 4}) {
    const Answer got = ByMask(5, free);
    EXPECT_EQ(got.tokens, expected.tokens) << free << " free neighbours";
    for (size_t i = 0; i < kTokens; ++i) {
      // Of the distribution over what is allowed.
      EXPECT_NEAR(got.logprobs[i].logprob, expected.logprobs[i].logprob, 1e-4) << i;
      EXPECT_EQ(got.logprobs[i].top.size(), expected.logprobs[i].top.size()) << i;
    }
  }
  EXPECT_EQ(cuda::Allocations().allocations, allocations) << "allocated while serving";
}

TEST_P(MaskTest, NothingAllowedIsNothingChosenAndAnEmptyMaskIsNone) {
  LateMask mask;
  mask.Set(0, std::vector<uint32_t>(static_cast<size_t>((vocab_ + 31) / 32)));
  SequenceInput input = Input(0, 0, prompt_, 0, {});
  const SequenceInput free = input;
  input.mask = &mask;
  executor_->Submit({{input}});
  EXPECT_EQ(executor_->Wait().outputs[0].chosen.token, -1);
  mask.Set(0, {});
  executor_->Submit({{input}});
  const int32_t token = executor_->Wait().outputs[0].chosen.token;
  executor_->Submit({{free}});
  const StepResult result = executor_->Wait();
  EXPECT_EQ(result.outputs[0].chosen.token, token);
  EXPECT_EQ(result.mask_wait_us, -1);
}

INSTANTIATE_TEST_SUITE_P(Devices, MaskTest,
                         testing::Combine(testing::Values(DeviceChoice::kCpu, DeviceChoice::kCuda),
                                          testing::Values("hybrid_attn", "hybrid_routed")),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param) == DeviceChoice::kCpu
                                                  ? "Cpu_"
                                                  : "Cuda_") +
                                  std::get<1>(info.param);
                         });

}  // namespace
}  // namespace weir::model
