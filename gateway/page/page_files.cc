#include "gateway/page/page_files.h"

#include <algorithm>

namespace weir::gateway {

const PageFile* FindPageFile(std::string_view path) {
  const std::span<const PageFile> files = PageFiles();
  const auto found = std::ranges::lower_bound(files, path, {}, &PageFile::path);
  return found != files.end() && found->path == path ? &*found : nullptr;
}

}  // namespace weir::gateway
