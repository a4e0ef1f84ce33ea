// What `weir bench kernels` measures: ops of kernels/ with the shapes that serving gives them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/buffer.h"
#include "core/dtype.h"
#include "core/status.h"
#include "core/stream.h"
#include "core/tensor.h"

namespace weir::server {

// Memory of one case, on the device of `stream`, released with the object. Allocation failures are
// kept: ask status() once after the last call; until then views may be undefined.
class BenchMemory {
 public:
  explicit BenchMemory(Stream stream) : stream_(stream) {}

  enum class Values : unsigned char {
    kNormal,    // about N(0, scale^2)
    kNegative,  // -|N(0, scale^2)|: log decays
    kPositive,  // uniform in (0, scale)
    kZero
  };
  // Pseudo-random, the same each time; `dtype` f32 or bf16.
  TensorView Make(DType dtype, std::initializer_list<int64_t> shape, Values values,
                  float scale = 1.0f);
  void* Raw(int64_t bytes, Values values = Values::kZero, float scale = 1.0f);  // f32 values
  TensorView Ints(const std::vector<int32_t>& values);
  TensorView Bytes(const std::vector<uint8_t>& values);

  const absl::Status& status() const { return status_; }
  Stream stream() const { return stream_; }
  bool gpu() const { return stream_.device == Device::kCuda; }
  DType activation() const { return gpu() ? DType::kBF16 : DType::kF32; }

 private:
  std::byte* Allocate(int64_t bytes);
  void Upload(std::byte* to, const void* from, size_t bytes);

  const Stream stream_;
  absl::Status status_;
  std::vector<Buffer> buffers_;
};

// An op ready to run. `run(i)` enqueues it on data set i of `copies`: together they do not fit in
// the last-level cache.
struct KernelCase {
  double bytes = 0;  // that must be read or written at least
  double flops = 0;  // multiply-adds count as two
  DType compute = DType::kBF16;
  int copies = 1;
  std::function<void(int copy)> run;
  std::shared_ptr<void> keep;  // what `run` refers to
};

struct KernelCaseSpec {
  std::string op;       // "matmul"
  std::string variant;  // "gate_up"
  std::vector<std::pair<std::string, int64_t>> dims;
  // How many data sets of `bytes` each the case should have is told by copies(bytes).
  std::function<absl::StatusOr<KernelCase>(Stream stream, const std::function<int(double)>& copies)>
      make;
};

// On a GPU the shapes of a 9B model and of published comparisons; on the CPU a smaller choice.
void AddDenseCases(bool gpu, std::vector<KernelCaseSpec>* cases);
void AddSequenceCases(bool gpu, std::vector<KernelCaseSpec>* cases);

}  // namespace weir::server
