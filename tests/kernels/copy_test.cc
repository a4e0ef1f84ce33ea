#include "kernels/copy.h"

#include <gtest/gtest.h>

#include <vector>

#include "tests/kernels/dense_test_support.h"

namespace weir::kernels {
namespace {

using testing::Threads;

// Block i filled with the value i + 1 at creation.
std::vector<uint8_t> Pool(int64_t blocks, int64_t block_bytes) {
  std::vector<uint8_t> pool(blocks * block_bytes);
  for (size_t i = 0; i < pool.size(); ++i) pool[i] = static_cast<uint8_t>(i / block_bytes + 1);
  return pool;
}

TEST(CopyBlocksTest, CopiesInOrderAndTouchesNothingElse) {
  for (int threads : {1, 2, 3}) {
    Threads pool_of_threads(threads);
    for (int64_t bytes : {int64_t{1}, int64_t{100}, int64_t{4096}, int64_t{3} << 20}) {
      std::vector<uint8_t> pool = Pool(6, bytes);
      // 1 -> 3, then 3 -> 0 reads what the first wrote; 4 -> 4 is nothing.
      const BlockCopy copies[] = {{1, 3}, {3, 0}, {4, 4}, {5, 1}};
      CopyBlocks(pool.data(), bytes, copies, pool_of_threads.stream());
      const uint8_t want[] = {2, 6, 3, 2, 5, 6};
      for (int64_t i = 0; i < 6 * bytes; ++i) ASSERT_EQ(pool[i], want[i / bytes]) << i;
    }
  }
}

TEST(CopyBlocksTest, NothingToCopyIsNothing) {
  Threads one(1);
  CopyBlocks(nullptr, 64, {}, one.stream());
}

}  // namespace
}  // namespace weir::kernels
