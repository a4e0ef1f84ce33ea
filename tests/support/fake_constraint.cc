#include "tests/support/fake_constraint.h"

#include <algorithm>
#include <chrono>
#include <thread>

#include "core/check.h"

namespace weir::testing {
namespace {

uint64_t Mix(uint64_t a, uint64_t b) {
  uint64_t x = a * 0x9E3779B97F4A7C15ull + b + 1;
  x ^= x >> 31;
  x *= 0xBF58476D1CE4E5B9ull;
  return x ^ (x >> 29);
}

bool Allowed(absl::Span<const uint32_t> mask, int32_t id) {
  return (mask[static_cast<size_t>(id / 32)] >> (id % 32) & 1) != 0;
}

}  // namespace

class FakeConstraint::Following final : public scheduler::TokenConstraint {
 public:
  explicit Following(const FakeConstraint* source) : source_(source), hash_(source->rules_.seed) {}

  bool FillMask(absl::Span<uint32_t> mask) override {
    const Rules& rules = source_->rules_;
    WEIR_CHECK(static_cast<int32_t>(mask.size()) == (rules.vocab + 31) / 32) << mask.size();
    ++source_->masks_;
    if (rules.mask_us > 0) std::this_thread::sleep_for(std::chrono::microseconds(rules.mask_us));
    if (count_ == rules.fails_at) return false;
    std::fill(mask.begin(), mask.end(), 0);
    const bool complete = count_ >= rules.complete_after;
    bool any = false;
    for (int32_t id = 0; id < rules.vocab; ++id) {
      const bool stops =
          std::find(rules.stop_ids.begin(), rules.stop_ids.end(), id) != rules.stop_ids.end();
      const bool random = Mix(hash_, static_cast<uint64_t>(id)) % 3 == 0;
      if (complete ? !stops : !random) continue;
      mask[static_cast<size_t>(id / 32)] |= uint32_t{1} << (id % 32);
      any = true;
    }
    if (!any) mask[0] |= 1;
    last_.assign(mask.begin(), mask.end());
    return true;
  }

  bool Accept(int32_t token) override {
    ++source_->accepted_;
    WEIR_CHECK(token >= 0 && Allowed(last_, token)) << "token " << token << " was not allowed";
    hash_ = Mix(hash_, static_cast<uint64_t>(token) + 1000);
    ++count_;
    return true;
  }

 private:
  const FakeConstraint* const source_;
  uint64_t hash_;
  int32_t count_ = 0;
  std::vector<uint32_t> last_;
};

std::unique_ptr<scheduler::TokenConstraint> FakeConstraint::Start() const {
  return std::make_unique<Following>(this);
}

}  // namespace weir::testing
