// What a load generator asks for: the n-th request and when it arrives, the same for the same
// flags.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/status.h"

namespace weir::v1 {
class GenerateRequest;
}

namespace weir::server {

struct WorkloadFlags {
  // Random ids, unless a file is named.
  int prompt_tokens = 128;
  int output_tokens = 256;
  // JSON lines, one request each, taken in turn: {"prompt": TEXT}, {"tokens": [ids]} or
  // {"messages": [...]}, and "output_tokens" where it is not --output-tokens.
  std::string prompts_file;
  // Lengths and arrivals of recorded traffic; ids are made up. Either CSV with a header and the
  // columns TIMESTAMP, ContextTokens, GeneratedTokens, or JSON lines with timestamp (ms),
  // input_length, output_length and, optionally, hash_ids: one for each 512 tokens of the prompt;
  // the same hash gives the same tokens.
  std::string trace_file;
  uint64_t seed = 1;
  float temperature = 0;
  bool text = false;         // ask for text, not for ids
  bool stop_at_end = false;  // obey end tokens; else answers have their full length
  std::string json_schema;   // answers are JSON that fits it, and end where it does; empty: free
};

// Immutable after Make; any thread.
class Workload {
 public:
  // Lengths of a trace are cut to what fits `max_position`. NOT_FOUND, INVALID_ARGUMENT (file, line
  // and reason; lengths that can never fit).
  static absl::StatusOr<Workload> Make(const WorkloadFlags& flags, int32_t vocab_size,
                                       int32_t max_position);

  void Fill(int64_t index, v1::GenerateRequest* request) const;

  bool has_arrivals() const { return !trace_.empty(); }
  // Seconds after the first request, not decreasing. REQUIRES: has_arrivals().
  double Arrival(int64_t index) const;
  // Requests in the trace or the prompts file; 0: without end.
  int64_t size() const;

 private:
  struct Traced {
    double arrival_s = 0;
    int32_t prompt_tokens = 0, output_tokens = 0;
    std::vector<int64_t> hashes;
  };

  absl::Status ReadPrompts();
  absl::Status ReadTrace();
  absl::Status ReadTraceLine(const std::string& line, bool json, Traced* traced);
  void Cut(Traced* traced) const;
  int32_t RandomId(uint64_t stream, uint64_t position) const;

  WorkloadFlags flags_;
  int32_t vocab_size_ = 0, max_position_ = 0;
  std::vector<Traced> trace_;
  std::vector<std::string> prompts_;  // serialized requests
};

}  // namespace weir::server
