// What `weir serve` prints once the model is loaded: everything that somebody who runs it would
// ask.
#pragma once

#include <string>

#include "model/model.h"
#include "server/options.h"
#include "server/served_model.h"

namespace weir::server {

// One block on stdout: the model, its memory, how many sequences fit, every limit.
void PrintServerFacts(const ServerOptions& options, const model::ModelInfo& info,
                      const ServedModel& served);

// A few lines on stdout: where it listens, and a command to try that works as it is printed.
// `program` is how this binary was called; `http_url` is empty without the HTTP door.
void PrintListening(const std::string& program, const ServedModel& served,
                    const std::string& grpc_address, const std::string& http_url,
                    const std::string& metrics_address);

}  // namespace weir::server
