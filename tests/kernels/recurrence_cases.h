// The shapes and the extremes that the recurrences are held to.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "kernels/recurrence.h"

namespace weir::kernels {

enum class Gate { kMild, kZero, kOne, kFive, kStrong, kHuge, kAlternating, kInfinite, kFixed };
enum class Betas { kSigmoid, kZero, kOne, kTwo, kNegativeEigenvalues };
enum class Keys { kRandom, kSame, kZero, kOneHot, kSometimesZero };

struct Case {
  std::string name;
  Decay decay;
  Update update;
  int heads, heads_q, heads_k, heads_v, heads_g;
  int K, V;
  std::vector<int> lengths;
  Gate gate = Gate::kMild;
  Betas betas = Betas::kSigmoid;
  Keys keys = Keys::kRandom;
};

inline const std::vector<int> kRagged = {5, 0, 1, 16, 17, 100, 3, 64, 65, 33, 1};

inline std::vector<Case> Cases() {
  const Decay none = Decay::kNone, scalar = Decay::kScalar, vector = Decay::kVector;
  const Update add = Update::kAdditive, delta = Update::kDelta;
  std::vector<Case> cases = {
      {"linear", none, add, 4, 4, 2, 2, 1, 20, 24, kRagged},
      {"retnet", scalar, add, 4, 4, 4, 4, 1, 36, 80, kRagged, Gate::kFixed},
      {"mamba2", scalar, add, 6, 2, 2, 6, 1, 48, 20, kRagged},
      {"gla", vector, add, 4, 4, 2, 2, 2, 20, 36, kRagged},
      {"gla_wide", vector, add, 2, 2, 2, 2, 2, 256, 100, {70, 7}},
      {"delta", none, delta, 3, 3, 3, 3, 1, 24, 20, kRagged},
      {"gdn", scalar, delta, 4, 2, 2, 4, 1, 64, 80, kRagged},
      {"gdn_128", scalar, delta, 2, 2, 2, 2, 1, 128, 128, {130, 2, 64}},
      {"gdn_64", scalar, delta, 4, 2, 2, 4, 1, 64, 64, {5, 0, 1, 3, 2, 1}},
      {"gla_64_by_128", vector, add, 6, 6, 2, 2, 2, 64, 128, {5, 0, 1, 3, 2, 1}},
      {"retnet_128_by_256", scalar, add, 2, 2, 2, 2, 1, 128, 256, {5, 1, 3}, Gate::kFixed},
      {"kda_256_by_64", vector, delta, 4, 2, 1, 4, 2, 256, 64, {5, 0, 1, 3, 2, 1}},
      {"delta_256", none, delta, 2, 2, 2, 2, 1, 256, 256, {3, 2}},
      {"gdn_tall", scalar, delta, 1, 1, 1, 1, 1, 100, 512, {90}},
      {"kda", vector, delta, 4, 2, 2, 4, 4, 36, 48, kRagged},
      {"kda_wide", vector, delta, 1, 1, 1, 1, 1, 256, 20, {81}},
      {"kda_128", vector, delta, 4, 2, 2, 4, 4, 128, 128, kRagged},
      {"gla_128", vector, add, 4, 4, 2, 2, 2, 128, 128, kRagged},
      {"kda_128_long", vector, delta, 1, 1, 1, 1, 1, 128, 128, {300}},
      {"gla_128_long", vector, add, 1, 1, 1, 1, 1, 128, 128, {300}},
      {"gdn_128_ragged", scalar, delta, 4, 2, 2, 4, 1, 128, 128, kRagged},
      {"gdn_128_uneven", scalar, delta, 8, 4, 2, 8, 1, 128, 64, {66, 3}},
      {"gdn_64_ragged", scalar, delta, 2, 2, 2, 2, 1, 64, 64, kRagged},
      {"gdn_128_long", scalar, delta, 1, 1, 1, 1, 1, 128, 128, {300}},
      {"delta_64_by_128", none, delta, 2, 2, 2, 2, 1, 64, 128, kRagged},
      {"linear_128", none, add, 2, 2, 2, 2, 1, 128, 128, kRagged},
      {"mamba2_128_by_64", scalar, add, 4, 1, 1, 4, 1, 128, 64, kRagged},
      {"retnet_64_by_128", scalar, add, 2, 2, 2, 2, 1, 64, 128, kRagged, Gate::kFixed},
      {"tiny", vector, delta, 1, 1, 1, 1, 1, 1, 1, {40, 3}},
      {"one_value", scalar, delta, 2, 1, 1, 2, 1, 7, 1, {40, 3}},
  };
  const std::vector<int> some = {70, 4, 19};
  for (auto [name, gate] : {std::pair{"zero", Gate::kZero},
                            {"one", Gate::kOne},
                            {"five", Gate::kFive},
                            {"strong", Gate::kStrong},
                            {"huge", Gate::kHuge},
                            {"alternating", Gate::kAlternating},
                            {"infinite", Gate::kInfinite}}) {
    for (Decay decay : {scalar, vector}) {
      for (Update update : {add, delta}) {
        cases.push_back({std::string("gate_") + name + (decay == scalar ? "_scalar" : "_vector") +
                             (update == add ? "_additive" : "_delta"),
                         decay, update, 2, 2, 1, 2, 1, 36, 24, some, gate});
      }
    }
    // The dims that have kernels of their own.
    for (Update update : {add, delta}) {
      cases.push_back({std::string("gate_") + name + (update == add ? "_gla_128" : "_kda_128"),
                       vector, update, 1, 1, 1, 1, 1, 128, 128, some, gate});
      cases.push_back({std::string("gate_") + name + (update == add ? "_mamba2_128" : "_gdn_128"),
                       scalar, update, 1, 1, 1, 1, 1, 128, 64, some, gate});
    }
  }
  for (auto [name, betas] : {std::pair{"zero", Betas::kZero},
                             {"one", Betas::kOne},
                             {"two", Betas::kTwo},
                             {"negative_eigenvalues", Betas::kNegativeEigenvalues}}) {
    for (auto [keys_name, keys] : {std::pair{"random", Keys::kRandom},
                                   {"same", Keys::kSame},
                                   {"zero", Keys::kZero},
                                   {"one_hot", Keys::kOneHot},
                                   {"sometimes_zero", Keys::kSometimesZero}}) {
      for (Decay decay : {none, scalar, vector}) {
        const char* prefix = decay == none ? "delta_" : decay == scalar ? "gdn_" : "kda_";
        cases.push_back({std::string(prefix) + "beta_" + name + "_keys_" + keys_name, decay, delta,
                         2, 2, 2, 2, 2, 24, 20, some, Gate::kMild, betas, keys});
      }
      if (keys == Keys::kSame || keys == Keys::kSometimesZero) {
        cases.push_back({std::string("kda_128_beta_") + name + "_keys_" + keys_name, vector, delta,
                         1, 1, 1, 1, 1, 128, 128, some, Gate::kZero, betas, keys});
        cases.push_back({std::string("gdn_128_beta_") + name + "_keys_" + keys_name, scalar, delta,
                         1, 1, 1, 1, 1, 128, 64, some, Gate::kZero, betas, keys});
      }
    }
  }
  return cases;
}

}  // namespace weir::kernels
