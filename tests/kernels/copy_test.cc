#include "kernels/copy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "tests/kernels/dense_test_support.h"
#include "tests/kernels/device_mirror.h"

namespace weir::kernels {
namespace {

using testing::DeviceMirror;
using testing::Threads;

// Block i filled with the value i + 1 at creation.
std::vector<uint8_t> Pool(int64_t blocks, int64_t block_bytes) {
  std::vector<uint8_t> pool(blocks * block_bytes);
  for (size_t i = 0; i < pool.size(); ++i) pool[i] = static_cast<uint8_t>(i / block_bytes + 1);
  return pool;
}

class CopyBlocksTest : public ::testing::TestWithParam<Device> {
 protected:
  void SetUp() override {
    if (GetParam() == Device::kCuda) WEIR_NEEDS_GPU();
  }
};
INSTANTIATE_TEST_SUITE_P(, CopyBlocksTest, ::testing::Values(Device::kCpu, Device::kCuda),
                         [](const auto& info) {
                           return info.param == Device::kCpu ? "cpu" : "gpu";
                         });

TEST_P(CopyBlocksTest, CopiesInOrderAndTouchesNothingElse) {
  for (int threads : {1, 2, 3}) {
    if (GetParam() == Device::kCuda && threads > 1) break;
    Threads pool_of_threads(threads);
    for (int64_t bytes : {int64_t{1}, int64_t{100}, int64_t{4096}, int64_t{3} << 20}) {
      std::vector<uint8_t> pool = Pool(6, bytes);
      // 1 -> 3, then 3 -> 0 reads what the first wrote; 4 -> 4 is nothing.
      const BlockCopy copies[] = {{1, 3}, {3, 0}, {4, 4}, {5, 1}};
      DeviceMirror mirror(GetParam(), DType::kF32, pool_of_threads.stream().pool);
      CopyBlocks(mirror.Memory(pool.data(), pool.size()), bytes, copies, mirror.stream());
      mirror.Fetch();
      const uint8_t want[] = {2, 6, 3, 2, 5, 6};
      for (int64_t i = 0; i < 6 * bytes; ++i) ASSERT_EQ(pool[i], want[i / bytes]) << i;
    }
  }
}

// More copies than one launch takes, chains and swaps through a spare block among them: as if done
// one after the other.
TEST_P(CopyBlocksTest, ManyCopiesAreAsIfOneAfterTheOther) {
  Threads two(2);
  constexpr int64_t kBlocks = 301, kBytes = 208;
  std::vector<uint8_t> pool(kBlocks * kBytes);
  for (size_t i = 0; i < pool.size(); ++i) pool[i] = static_cast<uint8_t>(i * 37 + i / kBytes);
  std::vector<BlockCopy> copies;
  for (int64_t i = 0; i < 150; ++i) copies.push_back({i, i + 150});       // all independent
  for (int64_t i = 0; i < 20; ++i) copies.push_back({200 + i, 201 + i});  // a chain
  for (int64_t i = 0; i < 20; ++i) {                                      // swaps
    copies.insert(copies.end(), {{i, 300}, {i + 40, i}, {300, i + 40}});
  }
  std::vector<uint8_t> want = pool;
  for (const BlockCopy& copy : copies) {
    std::copy_n(want.begin() + copy.from * kBytes, kBytes, want.begin() + copy.to * kBytes);
  }
  DeviceMirror mirror(GetParam(), DType::kF32, two.stream().pool);
  CopyBlocks(mirror.Memory(pool.data(), pool.size()), kBytes, copies, mirror.stream());
  mirror.Fetch();
  EXPECT_EQ(pool, want);
}

TEST_P(CopyBlocksTest, NothingToCopyIsNothing) {
  Threads one(1);
  DeviceMirror mirror(GetParam(), DType::kF32, one.stream().pool);
  CopyBlocks(nullptr, 64, {}, mirror.stream());
  mirror.Fetch();
}

}  // namespace
}  // namespace weir::kernels
