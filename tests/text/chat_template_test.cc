#include "text/chat_template.h"

#include <cstdlib>
#include <ctime>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/text/text_test_support.h"

namespace weir::text {
namespace {

using Json = nlohmann::ordered_json;
using ::testing::HasSubstr;

class GoldenTest : public ::testing::Test {
 protected:
  void SetUp() override {
    setenv("TZ", "UTC", 1);
    tzset();
  }
};

TEST_F(GoldenTest, TheLanguageIsWhatPythonGives) {
  const Json file = Json::parse(ReadData("jinja_cases.json"));
  const std::shared_ptr<const Tokenizer> tokenizer = TinyTokenizer(file["special"].dump());
  int wrong = 0;
  for (const Json& c : file["cases"]) {
    const std::string source = c["source"];
    const absl::StatusOr<ChatTemplate> chat = ChatTemplate::FromSource(source, tokenizer.get());
    absl::StatusOr<std::string> got = absl::UnknownError("");
    if (!chat.ok()) {
      got = chat.status();
    } else {
      ChatRequest request;
      request.messages_json = "[{}]";
      request.kwargs_json = file["context"].dump();
      request.now = absl::FromUnixSeconds(file["now"].get<int64_t>());
      got = chat->Render(request);
    }
    const bool same =
        c.contains("error") ? !got.ok() : got.ok() && *got == c["expected"].get<std::string>();
    if (c.contains("differs")) {
      EXPECT_FALSE(same) << "no longer differs: " << source;
      continue;
    }
    if (same) continue;
    ++wrong;
    ADD_FAILURE() << "source:   " << source << "\nexpected: "
                  << (c.contains("error") ? c["error"].dump() : c["expected"].dump())
                  << "\ngot:      " << (got.ok() ? Json(*got).dump() : got.status().ToString());
  }
  EXPECT_EQ(wrong, 0);
}

// The arguments of one case; tools and documents stand there by name.
ChatRequest RequestOf(const Json& file, const Json& c) {
  Json options = c["options"];
  ChatRequest request;
  request.messages_json = file["chats"][c["chat"].get<std::string>()].dump();
  request.add_generation_prompt = options.value("add_generation_prompt", false);
  request.continue_final_message = options.value("continue_final_message", false);
  const auto expand = [&](const char* what) -> std::string {
    if (!options.contains(what) || options[what].is_null()) return "";
    Json list = Json::array();
    for (const std::string name : options[what]) list.push_back(file[what][name]);
    return list.dump();
  };
  request.tools_json = expand("tools");
  request.documents_json = expand("documents");
  for (const char* key :
       {"add_generation_prompt", "continue_final_message", "tools", "documents"}) {
    options.erase(key);
  }
  request.kwargs_json = options.dump();
  request.now = absl::FromUnixSeconds(file["now"].get<int64_t>());
  return request;
}

TEST_F(GoldenTest, ChatsRenderAsTransformersRendersThem) {
  const Json file = Json::parse(ReadData("chat_cases.json"));
  std::map<std::string, ChatTemplate> templates;
  int rendered = 0;
  for (const Json& c : file["cases"]) {
    const std::string name = c["template"];
    if (!templates.contains(name)) {
      Folder folder;
      Json config = file["special"];
      if (name == "named") {
        config["chat_template"] = {
            {{"name", "default"}, {"template", ReadData("chat/named_default.jinja")}},
            {{"name", "tool_use"}, {"template", ReadData("chat/named_tool_use.jinja")}}};
      } else {
        config["chat_template"] = ReadData("chat/" + name + ".jinja");
      }
      folder.Write("tokenizer_config.json", config.dump());
      absl::StatusOr<ChatTemplate> loaded =
          ChatTemplate::Load(folder.path(), *TinyTokenizer(config.dump()));
      ASSERT_TRUE(loaded.ok()) << loaded.status();
      templates.emplace(name, *std::move(loaded));
    }
    const ChatRequest request = RequestOf(file, c);
    const absl::StatusOr<std::string> got = templates.at(name).Render(request);
    if (c.contains("error")) {
      EXPECT_FALSE(got.ok()) << c.dump() << "\ngave\n" << *got;
      if (c.contains("raised")) {
        EXPECT_THAT(std::string(got.status().message()), HasSubstr(c["raised"].get<std::string>()));
      }
      continue;
    }
    ASSERT_TRUE(got.ok()) << got.status() << "\n" << c.dump();
    EXPECT_EQ(*got, c["expected"].get<std::string>()) << c.dump();
    ++rendered;
  }
  EXPECT_GT(rendered, 180);
}

}  // namespace
}  // namespace weir::text
