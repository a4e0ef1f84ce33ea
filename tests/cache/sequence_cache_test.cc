#include "cache/sequence_cache.h"

#include <random>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace weir::cache {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Pair;

StateLayout Layout(int32_t page_tokens) {
  StateLayout layout;
  layout.slot_bytes = 64;
  layout.page_tokens = page_tokens;
  layout.page_bytes = page_tokens * 8;
  return layout;
}

std::vector<const Reservation*> Pointers(const std::vector<Reservation>& held) {
  std::vector<const Reservation*> pointers;
  for (const Reservation& reservation : held) pointers.push_back(&reservation);
  return pointers;
}

TEST(SequenceCacheTest, NeedIsExact) {
  const SequenceCache cache(Layout(4), {8, 100});
  EXPECT_EQ(cache.NeedOf({1, 1, 0}).pages, 1);
  EXPECT_EQ(cache.NeedOf({1, 4, 0}).pages, 1);
  EXPECT_EQ(cache.NeedOf({1, 5, 0}).pages, 2);
  EXPECT_EQ(cache.NeedOf({1, 5, 5}).pages, 2);  // alone there is nobody to share with
  // 3 choices of 10 tokens (3 pages each) with 9 common: 2 whole pages once, 1 page each.
  EXPECT_EQ(cache.NeedOf({3, 10, 9}).pages, 2 + 3);
  EXPECT_EQ(cache.NeedOf({3, 10, 9}).slots, 3);
  EXPECT_EQ(cache.NeedOf({3, 10, 3}).pages, 9);
  EXPECT_EQ(cache.NeedOf({3, 8, 8}).pages, 2);
}

TEST(SequenceCacheTest, AModelWithoutPagesNeedsNone) {
  StateLayout layout;
  layout.slot_bytes = 64;
  SequenceCache cache(layout, {2, 0});
  EXPECT_EQ(cache.NeedOf({2, 1'000'000, 999'999}).pages, 0);
  std::vector<Reservation> held = cache.Reserve({2, 1'000'000, 999'999});
  EXPECT_THAT(held[0].pages(), IsEmpty());
  ForkCopies copies;
  cache.Fork(held[0], held[1], 999'999, &copies);
  EXPECT_THAT(copies.slots, ElementsAre(Pair(held[0].slot(), held[1].slot())));
  EXPECT_THAT(copies.pages, IsEmpty());
  cache.CheckIntegrity(Pointers(held));
}

TEST(SequenceCacheTest, ReserveTakesWhatNeedSays) {
  SequenceCache cache(Layout(4), {8, 100});
  const FamilyShape shape{3, 10, 9};
  std::vector<Reservation> held = cache.Reserve(shape);
  EXPECT_EQ(cache.slots().used(), 3);
  EXPECT_EQ(cache.pages().used(), 5);
  for (const Reservation& reservation : held) {
    ASSERT_EQ(reservation.pages().size(), 3u);
    EXPECT_EQ(reservation.pages()[0], held[0].pages()[0]);
    EXPECT_EQ(reservation.pages()[1], held[0].pages()[1]);
  }
  EXPECT_NE(held[0].pages()[2], held[1].pages()[2]);
  EXPECT_NE(held[1].pages()[2], held[2].pages()[2]);
  cache.CheckIntegrity(Pointers(held));
}

TEST(SequenceCacheTest, SharedPagesOutliveTheFirst) {
  SequenceCache cache(Layout(4), {8, 100});
  std::vector<Reservation> held = cache.Reserve({3, 10, 9});
  held[0].Release();
  EXPECT_FALSE(held[0].held());
  EXPECT_EQ(cache.slots().used(), 2);
  EXPECT_EQ(cache.pages().used(), 4);
  cache.CheckIntegrity(Pointers(held));
  held[2].Release();
  held[1].Release();
  held[1].Release();  // again: nothing
  EXPECT_EQ(cache.slots().used(), 0);
  EXPECT_EQ(cache.pages().used(), 0);
  cache.CheckIntegrity({});
}

TEST(SequenceCacheTest, AReservationGivesBackWhenItDies) {
  SequenceCache cache(Layout(4), {2, 10});
  {
    std::vector<Reservation> held = cache.Reserve({2, 8, 0});
    const Reservation moved = std::move(held[0]);
    EXPECT_TRUE(moved.held());
    EXPECT_FALSE(held[0].held());
    EXPECT_EQ(cache.slots().used(), 2);
    held[1] = Reservation();
    EXPECT_EQ(cache.slots().used(), 1);
  }
  EXPECT_EQ(cache.slots().used(), 0);
  EXPECT_EQ(cache.pages().used(), 0);
}

TEST(SequenceCacheTest, ForkCopiesTheSlotAndThePartlyFilledPage) {
  SequenceCache cache(Layout(4), {8, 100});
  std::vector<Reservation> held = cache.Reserve({2, 12, 9});
  ForkCopies copies;
  cache.Fork(held[0], held[1], 9, &copies);
  EXPECT_THAT(copies.slots, ElementsAre(Pair(held[0].slot(), held[1].slot())));
  EXPECT_THAT(copies.pages, ElementsAre(Pair(held[0].pages()[2], held[1].pages()[2])));
}

TEST(SequenceCacheTest, ForkAtAPageBoundaryCopiesNoPage) {
  SequenceCache cache(Layout(4), {8, 100});
  std::vector<Reservation> held = cache.Reserve({2, 12, 8});
  ForkCopies copies;
  cache.Fork(held[0], held[1], 8, &copies);
  EXPECT_EQ(copies.slots.size(), 1u);
  EXPECT_THAT(copies.pages, IsEmpty());
}

TEST(SequenceCacheTest, PagesThatDoNotFillInOrderAreNotShared) {
  StateLayout layout = Layout(4);
  layout.pages_fill_in_order = false;
  SequenceCache cache(layout, {8, 100});
  EXPECT_EQ(cache.NeedOf({3, 10, 9}).pages, 9);
  std::vector<Reservation> held = cache.Reserve({2, 12, 9});
  EXPECT_EQ(cache.pages().used(), 6);
  ForkCopies copies;
  cache.Fork(held[0], held[1], 9, &copies);
  EXPECT_THAT(copies.pages, ElementsAre(Pair(held[0].pages()[0], held[1].pages()[0]),
                                        Pair(held[0].pages()[1], held[1].pages()[1]),
                                        Pair(held[0].pages()[2], held[1].pages()[2])));
  cache.CheckIntegrity(Pointers(held));
}

TEST(SequenceCacheDeathTest, MistakesAbort) {
  SequenceCache cache(Layout(4), {2, 3});
  EXPECT_DEATH(cache.Reserve({3, 1, 0}), "needs 3 slots and 3 pages");
  EXPECT_DEATH(cache.Reserve({1, 13, 0}), "needs 1 slots and 4 pages, free are 2 and 3");
  std::vector<Reservation> held = cache.Reserve({2, 4, 0});
  ForkCopies copies;
  EXPECT_DEATH(cache.Fork(held[0], held[1], 4, &copies), "page 0 is not shared");
  EXPECT_DEATH(cache.CheckIntegrity({&held[0]}), "1 slots held, 2 taken");
  EXPECT_DEATH(cache.CheckIntegrity({&held[0], &held[0]}), "held twice");
}

TEST(SequenceCacheTest, RandomFamiliesNeverLeak) {
  std::mt19937 random(11);
  for (const int32_t page_tokens : {1, 3, 16}) {
    SequenceCache cache(Layout(page_tokens), {9, 40});
    std::vector<Reservation> held;
    for (int turn = 0; turn < 3000; ++turn) {
      const int64_t tokens = 1 + random() % 40;
      const FamilyShape shape{static_cast<int32_t>(1 + random() % 4), tokens,
                              static_cast<int64_t>(random() % (tokens + 1))};
      const MemoryNeed need = cache.NeedOf(shape);
      const MemoryNeed before = cache.Free();
      if (Fits(need, before)) {
        for (Reservation& reservation : cache.Reserve(shape))
          held.push_back(std::move(reservation));
        ASSERT_EQ(cache.Free().slots, before.slots - need.slots);
        ASSERT_EQ(cache.Free().pages, before.pages - need.pages);
      }
      while (!held.empty() && random() % 2 == 0) {
        std::swap(held[random() % held.size()], held.back());
        held.pop_back();
      }
      cache.CheckIntegrity(Pointers(held));
    }
    held.clear();
    EXPECT_EQ(cache.Free().slots, 9);
    EXPECT_EQ(cache.Free().pages, 40);
  }
}

}  // namespace
}  // namespace weir::cache
