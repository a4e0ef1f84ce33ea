#include "kernels/cuda/cublas_lt.h"

#include <dlfcn.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace weir::kernels::gpu {
namespace {

// What the process's own executable can find through its run path comes first.
std::vector<std::string> Candidates() {
  std::vector<std::string> folders;
  if (const char* named = std::getenv("WEIR_CUBLASLT"); named != nullptr && *named != '\0') {
    const std::string path = named;
    if (path.find(".so") != std::string::npos) return {path};
    folders.push_back(path + "/");
  }
  folders.insert(folders.end(), {"", "/usr/local/cuda/lib64/"});
  std::vector<std::string> all;
  for (const std::string& folder : folders) {
    for (const char* name : {"libcublasLt.so.13", "libcublasLt.so.12"})
      all.push_back(folder + name);
  }
  return all;
}

template <typename Fn>
void Find(void* library, const char* name, Fn* fn, std::string* missing) {
  *fn = reinterpret_cast<Fn>(dlsym(library, name));
  if (*fn == nullptr) *missing = name;
}

absl::StatusOr<CublasLt> Load(void* library, const std::string& path) {
  CublasLt lt;
  std::string missing;
  Find(library, "cublasLtCreate", &lt.create, &missing);
  Find(library, "cublasLtGetVersion", &lt.version, &missing);
  Find(library, "cublasLtMatmul", &lt.matmul, &missing);
  Find(library, "cublasLtMatmulDescInit_internal", &lt.init_desc, &missing);
  Find(library, "cublasLtMatmulDescSetAttribute", &lt.set_desc, &missing);
  Find(library, "cublasLtMatrixLayoutInit_internal", &lt.init_layout, &missing);
  Find(library, "cublasLtMatmulPreferenceInit_internal", &lt.init_preference, &missing);
  Find(library, "cublasLtMatmulPreferenceSetAttribute", &lt.set_preference, &missing);
  Find(library, "cublasLtMatmulAlgoGetHeuristic", &lt.heuristic, &missing);
  Find(library, "cublasLtMatmulAlgoCheck", &lt.check, &missing);
  if (!missing.empty()) return absl::NotFoundError(absl::StrCat(path, " has no ", missing));
  const cublasStatus_t status = lt.create(&lt.handle);
  if (status != CUBLAS_STATUS_SUCCESS) {
    return absl::NotFoundError(
        absl::StrCat(path, " does not start: status ", static_cast<int>(status)));
  }
  return lt;
}

absl::StatusOr<CublasLt> Open() {
  std::string tried;
  for (const std::string& path : Candidates()) {
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library != nullptr) return Load(library, path);
    absl::StrAppend(&tried, tried.empty() ? "" : "; ", dlerror());
  }
  return absl::NotFoundError(absl::StrCat(
      "cuBLASLt was not found, so large matrix products are slow; put libcublasLt.so.13 beside the "
      "binary or name it in WEIR_CUBLASLT (",
      tried, ")"));
}

}  // namespace

const absl::StatusOr<CublasLt>& OpenCublasLt() {
  static const auto* opened = new absl::StatusOr<CublasLt>(Open());
  return *opened;
}

}  // namespace weir::kernels::gpu
