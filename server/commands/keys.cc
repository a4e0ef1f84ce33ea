// `weir keys`: the file of API keys that `weir serve --api-keys` reads.
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "core/access_keys.h"
#include "core/files.h"
#include "server/commands/commands.h"

namespace weir::server {
namespace {

constexpr size_t kMaxFileBytes = 64 << 20;

struct Arguments {
  std::string file, name;
  KeyLimits limits;
};

// Empty where there is no file yet.
absl::StatusOr<std::string> ReadText(const std::string& path) {
  ASSIGN_OR_RETURN(std::string text, ReadFileIfPresent(path, kMaxFileBytes));
  const auto keys = ParseAccessKeys(text);
  if (!keys.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", keys.status().message()));
  }
  return text;
}

// Readers see the old file or the whole new one; only its owner may read it.
absl::Status WriteText(const std::string& path, const std::string& text) {
  const std::string next = absl::StrCat(path, ".", getpid(), ".tmp");
  std::ofstream file(next, std::ios::trunc | std::ios::binary);
  file << text;
  file.close();
  struct stat old {};
  const mode_t mode = stat(path.c_str(), &old) == 0 ? old.st_mode & 0777 : 0600;
  if (!file || chmod(next.c_str(), mode) != 0 || std::rename(next.c_str(), path.c_str()) != 0) {
    const std::string why = std::strerror(errno);
    std::remove(next.c_str());
    return absl::UnavailableError(absl::StrCat("cannot write ", path, ": ", why));
  }
  return absl::OkStatus();
}

absl::Status Add(const Arguments& arguments) {
  ASSIGN_OR_RETURN(std::string text, ReadText(arguments.file));
  if (!text.empty() && text.back() != '\n') text += '\n';
  const std::string secret = NewSecret();
  absl::StrAppend(&text, FormatAccessKey({arguments.name, DigestOf(secret), arguments.limits}),
                  "\n");
  RETURN_IF_ERROR(ParseAccessKeys(text).status());  // a name given twice, or one with blanks
  RETURN_IF_ERROR(WriteText(arguments.file, text));
  std::fprintf(stderr, "The key of %s, shown this once; the file holds its hash alone:\n",
               arguments.name.c_str());
  std::printf("%s\n", secret.c_str());
  return absl::OkStatus();
}

absl::Status Remove(const Arguments& arguments) {
  ASSIGN_OR_RETURN(const std::string text, ReadText(arguments.file));
  std::string kept;
  bool found = false;
  for (const absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    const std::vector<absl::string_view> words =
        absl::StrSplit(line, absl::ByAnyChar(" \t\r"), absl::SkipEmpty());
    if (!words.empty() && words[0] == arguments.name) {
      found = true;
    } else {
      absl::StrAppend(&kept, line, "\n");
    }
  }
  if (!found) {
    return absl::NotFoundError(
        absl::StrCat(arguments.file, " has no key of the name ", arguments.name));
  }
  return WriteText(arguments.file, kept);
}

absl::Status List(const Arguments& arguments) {
  ASSIGN_OR_RETURN(const std::string text, ReadText(arguments.file));
  ASSIGN_OR_RETURN(const std::vector<AccessKey> keys, ParseAccessKeys(text));
  for (const AccessKey& key : keys) {
    const std::string line = FormatAccessKey(key);
    const std::vector<std::string> words = absl::StrSplit(line, ' ');
    std::printf("%s", key.name.c_str());
    for (size_t i = 2; i < words.size(); ++i) std::printf(" %s", words[i].c_str());
    std::printf("\n");
  }
  return absl::OkStatus();
}

using Action = absl::Status (*)(const Arguments&);

CLI::App* AddAction(CLI::App* keys, const std::string& name, const std::string& help, Action action,
                    const std::shared_ptr<Arguments>& arguments, int* exit_code) {
  CLI::App* command = keys->add_subcommand(name, help);
  command->add_option("FILE", arguments->file, "The file that weir serve --api-keys reads")
      ->required();
  command->callback([arguments, action, name, exit_code] {
    const absl::Status status = action(*arguments);
    if (!status.ok()) {
      std::fprintf(stderr, "weir keys %s: %s\n", name.c_str(),
                   std::string(status.message()).c_str());
    }
    *exit_code = status.ok() ? 0 : 1;
  });
  return command;
}

}  // namespace

void AddKeysCommand(CLI::App& app, int* exit_code) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* keys = app.add_subcommand("keys", "API keys: add, remove and list them");
  keys->require_subcommand(1);
  CLI::App* add = AddAction(keys, "add", "Make a key, print it, and write its hash to the file",
                            Add, arguments, exit_code);
  add->add_option("NAME", arguments->name, "Whose key it is: one word")->required();
  KeyLimits& limits = arguments->limits;
  add->add_option("--requests-per-minute", limits.requests_per_minute, "0: no limit");
  add->add_option("--tokens-per-minute", limits.tokens_per_minute,
                  "Of prompts and answers; 0: no limit");
  add->add_option("--concurrent", limits.concurrent, "Requests at once; 0: no limit");
  CLI::App* remove =
      AddAction(keys, "remove", "Take a key out of the file", Remove, arguments, exit_code);
  remove->add_option("NAME", arguments->name, "Whose key")->required();
  AddAction(keys, "list", "Names and limits", List, arguments, exit_code);
}

}  // namespace weir::server
