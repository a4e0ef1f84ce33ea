#include "gateway/page/page_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zlib.h>

#include <filesystem>
#include <fstream>
#include <regex>
#include <set>
#include <sstream>
#include <string>

namespace weir::gateway {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::string Inflate(std::string_view packed, size_t size) {
  std::string out(size + 1, '\0');
  z_stream stream = {};
  EXPECT_EQ(inflateInit2(&stream, 15 + 16), Z_OK);
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(packed.data()));
  stream.avail_in = packed.size();
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = out.size();
  EXPECT_EQ(inflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(stream.total_out);
  inflateEnd(&stream);
  return out;
}

std::string SourceOf(std::string_view path) {
  const std::string name = path == "/" ? "index.html" : std::string(path.substr(6));
  std::ifstream in(std::filesystem::path(WEIR_SOURCE_DIR) / "gateway/page" / name);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

TEST(PageFiles, AreTheSourcesAndTheirGzipVariantsInflateToThem) {
  ASSERT_GE(PageFiles().size(), 3u);
  for (const PageFile& file : PageFiles()) {
    EXPECT_EQ(file.body, SourceOf(file.path)) << file.path;
    EXPECT_FALSE(file.body.empty()) << file.path;
    if (!file.gzip.empty()) {
      EXPECT_LT(file.gzip.size(), file.body.size());
      EXPECT_EQ(Inflate(file.gzip, file.body.size()), file.body) << file.path;
    }
  }
}

TEST(PageFiles, EveryFileOfTheFolderIsServed) {
  std::set<std::string> served = {"CMakeLists.txt", "embed.py", "package.json", "page_files.cc",
                                  "page_files.h"};
  for (const PageFile& file : PageFiles()) {
    served.insert(file.path == "/" ? "index.html" : std::string(file.path.substr(6)));
  }
  const std::filesystem::path folder = std::filesystem::path(WEIR_SOURCE_DIR) / "gateway/page";
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    EXPECT_TRUE(served.contains(entry.path().filename())) << entry.path();
  }
}

TEST(PageFiles, AreFoundByTheirPathAlone) {
  ASSERT_NE(FindPageFile("/"), nullptr);
  EXPECT_THAT(FindPageFile("/")->content_type, HasSubstr("text/html"));
  ASSERT_NE(FindPageFile("/page/app.js"), nullptr);
  EXPECT_THAT(FindPageFile("/page/app.js")->content_type, HasSubstr("text/javascript"));
  for (const PageFile& file : PageFiles()) EXPECT_EQ(FindPageFile(file.path), &file);
  for (const char* path : {"", "/page", "/page/", "/index.html", "/page/index.html",
                           "/page/app.js/", "/page/../page/app.js", "/page/embed.py", "/zzz"}) {
    EXPECT_EQ(FindPageFile(path), nullptr) << path;
  }
}

TEST(PageFiles, EtagsAreQuotedAndDiffer) {
  std::set<std::string_view> seen;
  for (const PageFile& file : PageFiles()) {
    EXPECT_TRUE(std::regex_match(std::string(file.etag), std::regex("\"[0-9a-f]{20}\"")))
        << file.etag;
    EXPECT_TRUE(seen.insert(file.etag).second) << file.path;
  }
}

// What the Content-Security-Policy would refuse, and what would need the network.
TEST(PageFiles, TheDocumentHasNothingInlineAndNothingFromElsewhere) {
  const std::string html(FindPageFile("/")->body);
  EXPECT_THAT(html, Not(HasSubstr("<style")));
  EXPECT_FALSE(std::regex_search(html, std::regex("\\s(style|on[a-z]+)=")));
  EXPECT_FALSE(std::regex_search(html, std::regex("<script[^>]*>[^<]")));
  EXPECT_FALSE(std::regex_search(html, std::regex("(src|href)=\"(https?:)?//")));
}

TEST(PageFiles, EveryReferenceIsThere) {
  const std::regex in_html("(?:src|href)=\"(/[^\"#]*)\"");
  const std::regex in_script("(?:from|import) \"\\./([^\"]+)\"");
  int references = 0;
  for (const PageFile& file : PageFiles()) {
    const std::string text(file.body);
    for (std::sregex_iterator it(text.begin(), text.end(), in_html), end; it != end; ++it) {
      if (!file.content_type.starts_with("text/html")) break;
      EXPECT_NE(FindPageFile((*it)[1].str()), nullptr) << (*it)[1];
      ++references;
    }
    for (std::sregex_iterator it(text.begin(), text.end(), in_script), end; it != end; ++it) {
      EXPECT_NE(FindPageFile("/page/" + (*it)[1].str()), nullptr) << file.path << ": " << (*it)[1];
      ++references;
    }
  }
  EXPECT_GE(references, 2);
}

}  // namespace
}  // namespace weir::gateway
