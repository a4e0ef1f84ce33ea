// Products by cuBLASLt, with the kernel for each shape chosen by measurement or by the library's
// heuristic, once.
#include <algorithm>
#include <array>
#include <compare>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/cuda/check.h"
#include "kernels/cuda/cublas_lt.h"
#include "kernels/cuda/matmul_kernels.h"
#include "kernels/cuda/ops.h"

namespace weir::kernels::gpu {
namespace {

constexpr size_t kWorkspaceBytes = size_t{64} << 20;
constexpr int kCandidates = 16;
// The fastest few of the candidates are measured again, each time for about so long.
constexpr int kFinalists = 3, kRounds = 3, kMaxRepeats = 8;
constexpr double kMeasureMilliseconds = 0.2;
constexpr double kNever = 1e30;

cudaDataType_t LibraryType(DType dtype) { return dtype == DType::kBF16 ? CUDA_R_16BF : CUDA_R_32F; }

// What a choice depends on.
struct Key {
  int64_t out, in, rows;
  DType type, y_type;
  bool bias, aligned;

  friend auto operator<=>(const Key&, const Key&) = default;
};

struct Choice {
  bool found = false;
  bool measured = false;
  cublasLtMatmulAlgo_t algo{};
};

struct Plans {
  std::mutex mutex;
  std::map<Key, Choice> choices;
  Buffer workspace;
};
Plans& Shared() {
  static auto* plans = new Plans;
  return *plans;
}

bool Aligned(const Product& p) {
  auto aligned = [](const void* at, int64_t stride, DType type) {
    return reinterpret_cast<uintptr_t>(at) % 16 == 0 && stride * DTypeSize(type) % 16 == 0;
  };
  return aligned(p.x, p.x_stride, p.x_type) && aligned(p.w, p.in, p.w_type) &&
         aligned(p.y, p.y_stride, p.y_type);
}

Key KeyOf(const Product& p) {
  return {p.out, p.in, p.rows, p.w_type, p.y_type, p.bias != nullptr, Aligned(p)};
}

// The product in the library's terms, whose matrices are column-major: y^T = (W^T)^T x^T.
class Call {
 public:
  Call(const CublasLt& lt, const Product& p) : lt_(lt), p_(p) {
    Check(lt.init_desc(&desc_, sizeof(desc_), CUBLAS_COMPUTE_32F, CUDA_R_32F));
    Set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
    if (p.bias != nullptr) {
      Set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
      Set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
      Set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, CUDA_R_32F);
    }
    Layout(&w_, p.w_type, p.in, p.out, p.in);
    Layout(&x_, p.x_type, p.in, p.rows, p.x_stride);
    Layout(&y_, p.y_type, p.out, p.rows, p.y_stride);
  }

  std::vector<cublasLtMatmulAlgo_t> Candidates(int most) {
    cublasLtMatmulPreferenceOpaque_t preference;
    Check(lt_.init_preference(&preference, sizeof(preference)));
    const uint32_t alignment = Aligned(p_) ? 16 : static_cast<uint32_t>(DTypeSize(p_.w_type));
    auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
      Check(lt_.set_preference(&preference, attribute, &value, sizeof(value)));
    };
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{kWorkspaceBytes});
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment);
    std::array<cublasLtMatmulHeuristicResult_t, kCandidates> results;
    int count = 0;
    const cublasStatus_t status =
        lt_.heuristic(lt_.handle, &desc_, &w_, &x_, &y_, &y_, &preference,
                      std::min(most, kCandidates), results.data(), &count);
    std::vector<cublasLtMatmulAlgo_t> algos;
    if (status != CUBLAS_STATUS_SUCCESS) return algos;
    for (int i = 0; i < count; ++i) {
      if (results[i].state == CUBLAS_STATUS_SUCCESS) algos.push_back(results[i].algo);
    }
    return algos;
  }

  bool Fits(const cublasLtMatmulAlgo_t& algo) {
    cublasLtMatmulHeuristicResult_t result;
    return lt_.check(lt_.handle, &desc_, &w_, &x_, &y_, &y_, &algo, &result) ==
               CUBLAS_STATUS_SUCCESS &&
           result.state == CUBLAS_STATUS_SUCCESS && result.workspaceSize <= kWorkspaceBytes;
  }

  cublasStatus_t Run(const cublasLtMatmulAlgo_t& algo, Stream stream) {
    const float one = 1.0f, zero = 0.0f;
    return lt_.matmul(lt_.handle, &desc_, &one, p_.w, &w_, p_.x, &x_, &zero, p_.y, &y_, p_.y, &y_,
                      &algo, Shared().workspace.data(), kWorkspaceBytes,
                      static_cast<cudaStream_t>(stream.native));
  }

 private:
  static void Check(cublasStatus_t status) {
    WEIR_CHECK(status == CUBLAS_STATUS_SUCCESS) << "cuBLASLt status " << static_cast<int>(status);
  }
  template <typename T>
  void Set(cublasLtMatmulDescAttributes_t attribute, T value) {
    Check(lt_.set_desc(&desc_, attribute, &value, sizeof(value)));
  }
  void Layout(cublasLtMatrixLayoutOpaque_t* layout, DType type, int64_t rows, int64_t columns,
              int64_t stride) {
    // A single column may come with any stride.
    Check(lt_.init_layout(layout, sizeof(*layout), LibraryType(type), static_cast<uint64_t>(rows),
                          static_cast<uint64_t>(columns), std::max(stride, rows)));
  }

  const CublasLt& lt_;
  const Product& p_;
  cublasLtMatmulDescOpaque_t desc_;
  cublasLtMatrixLayoutOpaque_t w_, x_, y_;
};

// The choice measured for the next larger number of rows, where it is not far.
const Choice* NextLarger(const Plans& plans, const Key& key) {
  const Choice* best = nullptr;
  int64_t best_rows = 2 * key.rows + 1;
  for (const auto& [other, choice] : plans.choices) {
    Key same = other;
    same.rows = key.rows;
    if (!choice.measured || other.rows < key.rows || other.rows >= best_rows || same != key) {
      continue;
    }
    best = &choice;
    best_rows = other.rows;
  }
  return best;
}

Choice Choose(const CublasLt& lt, const Product& p) {
  const Key key = KeyOf(p);
  Plans& plans = Shared();
  std::lock_guard lock(plans.mutex);
  if (plans.workspace.data() == nullptr) return {};
  const auto at = plans.choices.find(key);
  if (at != plans.choices.end()) return at->second;
  Call call(lt, p);
  Choice choice;
  const Choice* larger = NextLarger(plans, key);
  if (larger != nullptr && call.Fits(larger->algo)) {
    choice.algo = larger->algo;
    choice.found = true;
  } else if (const auto algos = call.Candidates(1); !algos.empty()) {
    choice.algo = algos[0];
    choice.found = true;
  }
  plans.choices.emplace(key, choice);
  return choice;
}

}  // namespace

absl::Status ReserveLibrary() {
  if (!OpenCublasLt().ok()) return absl::OkStatus();  // the plain kernels need nothing
  Plans& plans = Shared();
  std::lock_guard lock(plans.mutex);
  if (plans.workspace.data() != nullptr) return absl::OkStatus();
  ASSIGN_OR_RETURN(plans.workspace,
                   cuda::AllocateDevice(kWorkspaceBytes, "the workspace of matrix products"));
  return absl::OkStatus();
}

bool LibraryMatMul(const Product& p, Stream stream) {
  const absl::StatusOr<CublasLt>& lt = OpenCublasLt();
  if (!lt.ok() || p.gated || p.x_type != p.w_type) return false;
  if (p.w_type == DType::kF32 && p.y_type != DType::kF32) return false;
  if (p.bias != nullptr && p.y_type == DType::kBF16) {
    // The library adds a bias of y's type only.
    Product without = p;
    without.bias = nullptr;
    if (!LibraryMatMul(without, stream)) return false;
    AddBias(p, stream);
    return true;
  }
  const Choice choice = Choose(*lt, p);
  if (!choice.found) return false;
  const cublasStatus_t status = Call(*lt, p).Run(choice.algo, stream);
  WEIR_CHECK(status == CUBLAS_STATUS_SUCCESS)
      << "cuBLASLt: status " << static_cast<int>(status) << " for [" << p.rows << ", " << p.in
      << "] x [" << p.out << ", " << p.in << "]";
  return true;
}

namespace {

struct Timed {
  cublasLtMatmulAlgo_t algo;
  double milliseconds = 0;
};

// Runs each candidate; the fastest few come first.
std::vector<Timed> MeasureAll(Call* call, Stream stream) {
  const cuda::Event begin = cuda::Event::Make(true), end = cuda::Event::Make(true);
  auto measure = [&](const cublasLtMatmulAlgo_t& algo, int repeats) {
    begin.Record(stream);
    for (int i = 0; i < repeats; ++i) {
      if (call->Run(algo, stream) != CUBLAS_STATUS_SUCCESS) return kNever;
    }
    end.Record(stream);
    end.Synchronize();
    return static_cast<double>(cuda::Event::Milliseconds(begin, end)) / repeats;
  };
  std::vector<Timed> timed;
  double best = kNever;
  for (const cublasLtMatmulAlgo_t& algo : call->Candidates(kCandidates)) {
    if (measure(algo, 1) >= kNever) continue;  // loads the kernel
    const double once = measure(algo, 1);
    best = std::min(best, once);
    if (once < 1.5 * best) timed.push_back({algo, once});
  }
  std::stable_sort(timed.begin(), timed.end(),
                   [](const Timed& a, const Timed& b) { return a.milliseconds < b.milliseconds; });
  timed.resize(std::min<size_t>(timed.size(), kFinalists));
  // In turn, so that a change of clocks meets all of them.
  for (Timed& t : timed) t.milliseconds = kNever;
  for (int round = 0; round < kRounds; ++round) {
    for (Timed& t : timed) {
      const double repeats = kMeasureMilliseconds / std::max(best, 1e-3);
      t.milliseconds = std::min(
          t.milliseconds, measure(t.algo, std::clamp(static_cast<int>(repeats), 1, kMaxRepeats)));
    }
  }
  return timed;
}

}  // namespace

double TuneLibrary(const Product& p, Stream stream) {
  const absl::StatusOr<CublasLt>& lt = OpenCublasLt();
  if (!lt.ok() || Shared().workspace.data() == nullptr) return 0.0;
  Call call(*lt, p);
  const std::vector<Timed> timed = MeasureAll(&call, stream);
  if (timed.empty()) return 0.0;
  const Timed& best = *std::min_element(
      timed.begin(), timed.end(),
      [](const Timed& a, const Timed& b) { return a.milliseconds < b.milliseconds; });
  Plans& plans = Shared();
  std::lock_guard lock(plans.mutex);
  plans.choices[KeyOf(p)] = {true, true, best.algo};
  return best.milliseconds;
}

}  // namespace weir::kernels::gpu
