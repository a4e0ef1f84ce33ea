#include "core/thread_pool.h"

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace weir {
namespace {

TEST(ThreadPool, EveryTaskRunsExactlyOnceInManyShortRegions) {
  for (int threads : {1, 2, 3, 5}) {
    ThreadPool pool(threads);
    for (int region = 0; region < 3000; ++region) {
      const int n = region % 17;
      std::vector<std::atomic<int>> hits(17);
      pool.ParallelFor(n, [&](int64_t i) { hits[i].fetch_add(1); });
      for (int i = 0; i < 17; ++i) ASSERT_EQ(hits[i].load(), i < n ? 1 : 0) << region << " " << i;
    }
  }
}

TEST(ThreadPool, RegionsAfterWorkersFellAsleep) {
  ThreadPool pool(4);
  for (int round = 0; round < 20; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    std::atomic<int64_t> sum{0};
    pool.ParallelFor(100, [&](int64_t i) { sum.fetch_add(i); });
    ASSERT_EQ(sum.load(), 4950);
  }
}

// The number that marks a region's tasks wraps around after 16.7 million regions, minutes of
// serving. A pool begins shortly before that, so each of these passes it.
TEST(ThreadPool, NothingRunsTwiceWhereTheRegionsNumberWrapsAround) {
  constexpr int kRegions = 520, kTasks = 3;
  for (int round = 0; round < 300; ++round) {
    ThreadPool pool(3);
    std::vector<std::atomic<int>> hits(kRegions * kTasks);
    for (int region = 0; region < kRegions; ++region) {
      pool.ParallelFor(kTasks, [&hits, region](int64_t i) {
        // Long enough for the workers to come.
        const auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(1);
        while (region > 480 && std::chrono::steady_clock::now() < until) {
        }
        hits[region * kTasks + i].fetch_add(1);
      });
    }
    for (size_t i = 0; i < hits.size(); ++i) ASSERT_EQ(hits[i].load(), 1) << "task " << i;
  }
}

TEST(ThreadPool, RangesCoverEverythingOnceAndDependOnSizesOnly) {
  ThreadPool pool(3);
  for (int64_t n : {0, 1, 5, 64, 1000}) {
    std::vector<std::atomic<int>> hits(n);
    pool.ParallelRanges(n, 4, [&](int64_t begin, int64_t end) {
      ASSERT_LE(begin, end);
      for (int64_t i = begin; i < end; ++i) hits[i].fetch_add(1);
    });
    for (auto& hit : hits) ASSERT_EQ(hit.load(), 1);
  }
}

TEST(UsableCores, AtLeastOne) { EXPECT_GE(UsableCores(), 1); }

}  // namespace
}  // namespace weir
