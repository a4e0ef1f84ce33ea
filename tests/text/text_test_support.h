// What the tests of text/ share: their data files and model folders made on the fly.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <string_view>

#include "gtest/gtest.h"
#include "text/tokenizer.h"

namespace weir::text {

inline std::string ReadWhole(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in) << path;
  std::stringstream out;
  out << in.rdbuf();
  return out.str();
}

inline std::string DataPath(const std::string& name) {
  return std::string(WEIR_SOURCE_DIR "/tests/text/data/") + name;
}

inline std::string ReadData(const std::string& name) { return ReadWhole(DataPath(name)); }

// The data that is handed around beside the repository; may be absent.
inline std::string SharedDir() {
  const char* dir = std::getenv("WEIR_SHARED_DIR");
  return dir != nullptr ? dir : WEIR_SOURCE_DIR "/../shared";
}

inline std::shared_ptr<const Tokenizer> LoadTokenizer(const std::string& dir) {
  auto loaded = Tokenizer::Load(dir);
  EXPECT_TRUE(loaded.ok()) << loaded.status();
  return loaded.ok() ? *loaded : nullptr;
}

// A tokenizer of one token whose configuration names the special tokens.
inline std::shared_ptr<const Tokenizer> TinyTokenizer(const std::string& config) {
  const char* tokenizer =
      R"({"version":"1.0","added_tokens":[],"model":{"type":"WordLevel","vocab":{"<unk>":0},)"
      R"("unk_token":"<unk>"}})";
  auto loaded = Tokenizer::FromJson(tokenizer, config);
  EXPECT_TRUE(loaded.ok()) << loaded.status();
  return loaded.ok() ? *loaded : nullptr;
}

// A folder that is removed at the end.
class Folder {
 public:
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "weir_text_XXXXXX").string();
    EXPECT_NE(mkdtemp(name.data()), nullptr);
    path_ = name;
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  void Write(const std::string& name, std::string_view contents) const {
    std::filesystem::create_directories((path_ / name).parent_path());
    std::ofstream(path_ / name, std::ios::binary) << contents;
  }
  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

// The byte at which text stops being UTF-8, or npos.
inline size_t FirstInvalidByte(std::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    const auto byte = [&](size_t at) { return static_cast<unsigned char>(text[at]); };
    const unsigned char lead = byte(i);
    size_t length = lead < 0x80 ? 1 : lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    if (lead > 0xF4) length = 0;
    if (length == 0 || i + length > text.size()) return i;
    for (size_t k = 1; k < length; ++k) {
      if ((byte(i + k) & 0xC0) != 0x80) return i;
    }
    if ((lead == 0xE0 && byte(i + 1) < 0xA0) || (lead == 0xED && byte(i + 1) > 0x9F) ||
        (lead == 0xF0 && byte(i + 1) < 0x90) || (lead == 0xF4 && byte(i + 1) > 0x8F)) {
      return i;
    }
    i += length;
  }
  return std::string_view::npos;
}

}  // namespace weir::text
