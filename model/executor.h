// The CPU executor: steps run on a thread of its own, in the order in which they were submitted, so
// that the engine plans the next step while one runs.
#pragma once

#include <memory>

#include "model/step_runner.h"
#include "scheduler/executor.h"

namespace weir::model {

// Steps in flight: one running, one waiting behind it.
constexpr int kMaxInFlight = 2;

std::unique_ptr<scheduler::Executor> MakeExecutor(StepRunner runner, Stream stream);

}  // namespace weir::model
