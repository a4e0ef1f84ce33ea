// The files of the web page, compiled into the binary (embed.py writes the table at build time).
#pragma once

#include <span>
#include <string_view>

namespace weir::gateway {

// All views point into static storage and are valid for the life of the process.
struct PageFile {
  std::string_view path;  // of the URL: "/" or "/page/NAME"
  std::string_view content_type;
  std::string_view body;
  std::string_view gzip;  // the same as one gzip member; empty where it would not be smaller
  std::string_view etag;  // strong, with its quotes; the gzip variant needs another one, see below
};

// The etag of the gzip variant is `etag` with "-gzip" before the closing quote: a strong etag names
// the bytes, and the two variants differ in them. Both change with the file's contents.

// The file at the path of a URL (no query), or null. Any thread.
const PageFile* FindPageFile(std::string_view path);

// Every file, ordered by path. Any thread.
std::span<const PageFile> PageFiles();

}  // namespace weir::gateway
