#include "server/work_pool.h"

#include <atomic>
#include <future>
#include <memory>

#include "gtest/gtest.h"

namespace weir::server {
namespace {

TEST(WorkPoolTest, RunsEverythingOnceAndInOrder) {
  std::vector<int> order;
  {
    WorkPool pool(1, 1000);
    for (int i = 0; i < 500; ++i) {
      EXPECT_TRUE(pool.TryAdd([&order, i] { order.push_back(i); }));
    }
  }  // the destructor runs what waits
  ASSERT_EQ(order.size(), 500u);
  for (int i = 0; i < 500; ++i) EXPECT_EQ(order[i], i);
}

TEST(WorkPoolTest, RefusesPastItsBound) {
  std::promise<void> hold;
  std::promise<void> begun;
  std::atomic<int> ran{0};
  {
    WorkPool pool(1, 2);
    EXPECT_TRUE(pool.TryAdd([&] {
      begun.set_value();
      hold.get_future().wait();
    }));
    begun.get_future().wait();  // it waits no more, it runs
    EXPECT_TRUE(pool.TryAdd([&] { ++ran; }));
    EXPECT_TRUE(pool.TryAdd([&] { ++ran; }));
    EXPECT_EQ(pool.waiting(), 2u);
    EXPECT_FALSE(pool.TryAdd([&] { ++ran; }));
    pool.Add([&] { ++ran; });  // not bounded
    hold.set_value();
  }
  EXPECT_EQ(ran, 3);
}

TEST(WorkPoolTest, WhatTheWaitingHoldIsBounded) {
  std::promise<void> hold;
  std::promise<void> begun;
  WorkPool pool(1, 100, 1000);
  EXPECT_TRUE(pool.TryAdd(
      [&] {
        begun.set_value();
        hold.get_future().wait();
      },
      700));
  begun.get_future().wait();  // what runs does not count
  EXPECT_TRUE(pool.TryAdd([] {}, 600));
  EXPECT_FALSE(pool.TryAdd([] {}, 401));
  EXPECT_TRUE(pool.TryAdd([] {}, 400));
  EXPECT_FALSE(pool.TryAdd([] {}, 1));
  std::promise<void> over;
  pool.Add([&] { over.set_value(); });
  hold.set_value();
  over.get_future().wait();
  EXPECT_TRUE(pool.TryAdd([] {}, 5000));  // alone, as large as it likes
}

TEST(WorkPoolTest, WhatATaskHoldsGoesWhenItHasRun) {
  auto held = std::make_shared<int>(1);
  std::weak_ptr<int> watch = held;
  WorkPool pool(2, 10);
  std::promise<void> done;
  pool.Add([held = std::move(held)] {});
  pool.Add([&] { done.set_value(); });
  done.get_future().wait();
  while (!watch.expired()) std::this_thread::yield();
}

}  // namespace
}  // namespace weir::server
