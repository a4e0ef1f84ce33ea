#include <random>
#include <set>
#include <vector>

#include "cache/page_pool.h"
#include "cache/slot_pool.h"
#include "gtest/gtest.h"

namespace weir::cache {
namespace {

TEST(SlotPoolTest, HandsOutEachSlotOnce) {
  SlotPool pool(3);
  EXPECT_EQ(pool.total(), 3);
  std::set<int32_t> taken;
  while (pool.free() > 0) taken.insert(pool.Take());
  EXPECT_EQ(taken, (std::set<int32_t>{0, 1, 2}));
  EXPECT_EQ(pool.used(), 3);
  pool.Free(1);
  EXPECT_EQ(pool.free(), 1);
  EXPECT_EQ(pool.Take(), 1);
  pool.CheckIntegrity();
}

TEST(SlotPoolTest, TheLastFreedComesFirst) {
  SlotPool pool(4);
  const int32_t a = pool.Take();
  const int32_t b = pool.Take();
  pool.Free(a);
  pool.Free(b);
  EXPECT_EQ(pool.Take(), b);
  EXPECT_EQ(pool.Take(), a);
}

TEST(SlotPoolDeathTest, MistakesAbort) {
  SlotPool pool(2);
  const int32_t slot = pool.Take();
  pool.Free(slot);
  EXPECT_DEATH(pool.Free(slot), "freed twice");
  EXPECT_DEATH(pool.Free(2), "slot 2 of 2");
  EXPECT_DEATH(pool.Free(-1), "slot -1 of 2");
  pool.Take();
  pool.Take();
  EXPECT_DEATH(pool.Take(), "all 2 slots are taken");
}

TEST(PagePoolTest, APageIsFreeWhenItsLastHolderLetsGo) {
  PagePool pool(2);
  const int32_t page = pool.Take();
  pool.Share(page);
  pool.Share(page);
  EXPECT_EQ(pool.holders(page), 3);
  EXPECT_EQ(pool.used(), 1);
  pool.Release(page);
  pool.Release(page);
  EXPECT_EQ(pool.used(), 1);
  pool.Release(page);
  EXPECT_EQ(pool.used(), 0);
  EXPECT_EQ(pool.holders(page), 0);
  pool.CheckIntegrity();
}

TEST(PagePoolDeathTest, MistakesAbort) {
  PagePool pool(1);
  EXPECT_DEATH(pool.Share(0), "page 0 is free");
  EXPECT_DEATH(pool.Release(0), "freed twice");
  EXPECT_DEATH(pool.Release(1), "page 1 of 1");
  pool.Take();
  EXPECT_DEATH(pool.Take(), "all 1 pages are taken");
}

TEST(PagePoolTest, NoPages) {
  PagePool pool(0);
  EXPECT_EQ(pool.free(), 0);
  pool.CheckIntegrity();
}

TEST(PagePoolTest, RandomUseAgreesWithAPlainModel) {
  std::mt19937 random(7);
  PagePool pool(13);
  std::vector<int32_t> held;  // one entry per holder
  for (int turn = 0; turn < 20'000; ++turn) {
    const auto what = random() % 3;
    if (what == 0 && pool.free() > 0) {
      held.push_back(pool.Take());
    } else if (what == 1 && !held.empty() && held.size() < 60) {
      const int32_t page = held[random() % held.size()];
      pool.Share(page);
      held.push_back(page);
    } else if (what == 2 && !held.empty()) {
      std::swap(held[random() % held.size()], held.back());
      pool.Release(held.back());
      held.pop_back();
    }
    ASSERT_EQ(pool.used(), std::ssize(std::set<int32_t>(held.begin(), held.end())));
    if (turn % 100 == 0) pool.CheckIntegrity();
  }
}

}  // namespace
}  // namespace weir::cache
