// A simulation of the whole scheduler: fake executor, virtual clock, and a world of clients drawn
// from a seed. The same seed gives the same run. Broken promises are sentences in
// SimReport::faults; broken invariants abort after the seed has been printed.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace weir::sim {

struct SimReport {
  std::vector<std::string> faults;   // empty: everything held
  uint64_t trace = 0;                // hash of all that clients saw, in order
  std::array<int64_t, 7> reasons{};  // choices, by FinishReason
  int64_t refused_invalid = 0, refused_full = 0, refused_draining = 0;
  int64_t turns = 0, steps = 0, tokens = 0;
  int64_t forked_slots = 0, forked_pages = 0, fed = 0;
  int64_t stopped_choices = 0;  // StopChoice that ended one
  int64_t full_pools = 0;       // turns with every slot or page taken and requests waiting

  void Add(const SimReport& other);
};

struct SimScale {
  int32_t most_requests = 24;
  int32_t most_position = 96;
};

SimReport RunSimulation(uint64_t seed, const SimScale& scale);

}  // namespace weir::sim
