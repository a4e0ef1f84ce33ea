// Many small worlds. WEIR_SIM_SEED=n runs only that one; WEIR_SIM_SEEDS=n changes how many.
#include <cstdlib>
#include <iostream>

#include "gtest/gtest.h"
#include "tests/sim/simulation.h"

namespace weir::sim {
namespace {

#ifndef WEIR_SIM_DEFAULT_SEEDS
#error "how many seeds?"
#endif

uint64_t FromEnvironment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

SimScale Scale() {
  SimScale scale;
  scale.most_requests = WEIR_SIM_REQUESTS;
  scale.most_position = WEIR_SIM_POSITION;
  return scale;
}

void ExpectHeld(uint64_t seed, const SimReport& report) {
  for (const std::string& fault : report.faults) ADD_FAILURE() << "seed " << seed << ": " << fault;
}

TEST(SimTest, EveryPromiseHoldsInEveryWorld) {
  const uint64_t only = FromEnvironment("WEIR_SIM_SEED", 0);
  if (only > 0) return ExpectHeld(only, RunSimulation(only, Scale()));
  const uint64_t seeds = FromEnvironment("WEIR_SIM_SEEDS", WEIR_SIM_DEFAULT_SEEDS);
  SimReport all;
  for (uint64_t seed = 1; seed <= seeds; ++seed) {
    const SimReport report = RunSimulation(seed, Scale());
    ExpectHeld(seed, report);
    all.Add(report);
    if (all.faults.size() > 20) break;
  }
  std::cout << seeds << " worlds: " << all.turns << " turns, " << all.steps << " steps, "
            << all.tokens << " tokens, " << all.fed << " fed, " << all.forked_slots
            << " forks with " << all.forked_pages << " page copies, " << all.stopped_choices
            << " stop strings, " << all.full_pools
            << " turns with full pools\nrefused: " << all.refused_invalid << " invalid, "
            << all.refused_full << " full, " << all.refused_draining
            << " draining; choices by reason:";
  for (const int64_t count : all.reasons) std::cout << ' ' << count;
  std::cout << '\n';
  if (seeds < 1000) return;
  // The worlds must have been worth simulating.
  for (size_t reason = 0; reason < all.reasons.size(); ++reason) {
    EXPECT_GT(all.reasons[reason], static_cast<int64_t>(seeds / 100)) << "reason " << reason;
  }
  const int64_t least = static_cast<int64_t>(seeds / 10);
  EXPECT_GT(all.refused_invalid, least);
  EXPECT_GT(all.refused_full, least);
  EXPECT_GT(all.refused_draining, least);
  EXPECT_GT(all.forked_slots, least);
  EXPECT_GT(all.forked_pages, least);
  EXPECT_GT(all.fed, least);
  EXPECT_GT(all.stopped_choices, least);
  EXPECT_GT(all.full_pools, least);
}

TEST(SimTest, ASeedReplays) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    const SimReport first = RunSimulation(seed, Scale());
    const SimReport second = RunSimulation(seed, Scale());
    EXPECT_EQ(first.trace, second.trace) << "seed " << seed;
    EXPECT_EQ(first.steps, second.steps) << "seed " << seed;
  }
}

}  // namespace
}  // namespace weir::sim
