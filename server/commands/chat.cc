// `weir chat`: a conversation in the terminal.
#include <grpcpp/grpcpp.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "server/commands/commands.h"
#include "server/commands/connection.h"
#include "server/commands/generate_flags.h"
#include "weir/v1/generate.pb.h"

namespace weir::server {
namespace {

constexpr char kHelp[] =
    "  /reset         forget the conversation, keep the system message\n"
    "  /system TEXT   set the system message and start anew; without TEXT: none\n"
    "  /help          this list\n"
    "  /quit          end (also Ctrl-D)\n"
    "  Ctrl-C stops an answer; what was said of it stays. A line that ends in \\ goes on.\n";

// Ctrl-C cancels the call in flight, if any. A thread takes the signal, so nothing runs in a
// handler.
class Interrupt {
 public:
  // Blocks SIGINT for this thread and all that it starts.
  Interrupt() : state_(std::make_shared<State>()) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set, nullptr);
    // Waits for signals until the process ends, hence detached.
    std::thread([state = state_, set] {
      while (true) {
        int signal = 0;
        if (sigwait(&set, &signal) != 0) continue;
        std::lock_guard<std::mutex> lock(state->mutex);
        if (state->rpc != nullptr) {
          state->rpc->TryCancel();
        } else {
          std::fputs("\n(/quit or Ctrl-D ends the chat)\n> ", stdout);
          std::fflush(stdout);
        }
      }
    }).detach();
  }
  void Set(grpc::ClientContext* rpc) {
    std::lock_guard<std::mutex> lock(state_->mutex);
    state_->rpc = rpc;
  }

 private:
  struct State {
    std::mutex mutex;
    grpc::ClientContext* rpc = nullptr;
  };
  std::shared_ptr<State> state_;
};

struct Answer {
  absl::Status status;
  std::string text, reasoning;
  int32_t tokens = 0;
  bool cut = false;    // max_tokens
  double first_s = 0;  // until the first text
  double total_s = 0;
};

class Chat {
 public:
  Chat(Connection connection, v1::GenerateRequest request, std::string system, Interrupt* interrupt)
      : connection_(std::move(connection)),
        base_(std::move(request)),
        system_(std::move(system)),
        interrupt_(interrupt) {
    Reset();
  }

  // Until the end of the input.
  void Loop() {
    std::string line;
    while (ReadLine(&line)) {
      const std::string text(absl::StripAsciiWhitespace(line));
      if (text.empty()) continue;
      if (text[0] != '/') {
        Say(line);
      } else if (!Command(text)) {
        return;
      }
    }
    std::printf("\n");
  }

 private:
  void Reset() {
    conversation_.Clear();
    if (!system_.empty()) Add("system", system_);
  }
  void Add(const char* role, const std::string& content) {
    v1::ChatMessage* message = conversation_.add_messages();
    message->set_role(role);
    message->set_content(content);
  }

  static bool ReadLine(std::string* line) {
    line->clear();
    std::fputs("> ", stdout);
    std::fflush(stdout);
    std::string part;
    while (std::getline(std::cin, part)) {
      if (part.empty() || part.back() != '\\') {
        *line += part;
        return true;
      }
      part.back() = '\n';
      *line += part;
    }
    return false;
  }

  // False: the chat is over.
  bool Command(const std::string& text) {
    if (text == "/quit" || text == "/exit") return false;
    if (text == "/help") {
      std::fputs(kHelp, stdout);
    } else if (text == "/reset") {
      Reset();
      std::printf("(the conversation starts anew)\n");
    } else if (text == "/system" || text.rfind("/system ", 0) == 0) {
      system_ = std::string(absl::StripAsciiWhitespace(text.substr(7)));
      Reset();
      std::printf(system_.empty() ? "(no system message; the conversation starts anew)\n"
                                  : "(system message set; the conversation starts anew)\n");
    } else {
      std::printf("(unknown command %s; /help lists them)\n", text.c_str());
    }
    return true;
  }

  void Say(const std::string& text) {
    Add("user", text);
    const Answer answer = Generate();
    std::printf("\n");
    if (!answer.status.ok() && !absl::IsCancelled(answer.status)) {
      std::printf("(%s: %s)\n", absl::StatusCodeToString(answer.status.code()).c_str(),
                  std::string(answer.status.message()).c_str());
      conversation_.mutable_messages()->RemoveLast();  // it was not answered
      return;
    }
    Add("assistant", answer.text);
    if (!answer.reasoning.empty()) {
      const int last = conversation_.messages_size() - 1;
      conversation_.mutable_messages(last)->set_reasoning(answer.reasoning);
    }
    const double decode_s = answer.total_s - answer.first_s;
    const bool colours = isatty(STDOUT_FILENO) != 0;
    std::printf("%s[%d tokens, %sfirst token after %.0f ms%s]%s\n", colours ? "\033[2m" : "",
                answer.tokens,
                answer.tokens > 1 && decode_s > 0
                    ? absl::StrFormat("%.1f tokens/s, ", (answer.tokens - 1) / decode_s).c_str()
                    : "",
                answer.first_s * 1e3,
                absl::IsCancelled(answer.status) ? ", stopped"
                : answer.cut                     ? ", cut at max-tokens"
                                                 : "",
                colours ? "\033[0m" : "");
  }

  Answer Generate() {
    v1::GenerateRequest request = base_;
    *request.mutable_chat() = conversation_;
    Answer answer;
    grpc::ClientContext rpc;
    interrupt_->Set(&rpc);
    const auto begin = std::chrono::steady_clock::now();
    const auto seconds = [&] {
      return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    };
    answer.status = StreamGenerate(connection_, request, &rpc, [&](const v1::GenerateEvent& event) {
      if (event.has_choice_finished()) {
        answer.cut = event.choice_finished().reason() == v1::FINISH_REASON_LENGTH;
      }
      if (!event.has_delta()) return;
      if (answer.tokens == 0) answer.first_s = seconds();
      answer.tokens += event.delta().token_ids_size();
      Show(event.delta(), &answer);
    });
    answer.total_s = seconds();
    interrupt_->Set(nullptr);
    return answer;
  }

  // Reasoning is dimmed, and stands in lines of its own.
  static void Show(const v1::Delta& delta, Answer* answer) {
    const bool colours = isatty(STDOUT_FILENO) != 0;
    if (!delta.reasoning().empty()) {
      std::printf("%s%s%s", colours ? "\033[2m" : "", delta.reasoning().c_str(),
                  colours ? "\033[0m" : "");
    }
    answer->reasoning += delta.reasoning();
    if (answer->text.empty() && !delta.text().empty() && !answer->reasoning.empty()) {
      std::fputs("\n\n", stdout);
    }
    answer->text += delta.text();
    std::fwrite(delta.text().data(), 1, delta.text().size(), stdout);
    std::fflush(stdout);
  }

  Connection connection_;
  const v1::GenerateRequest base_;
  std::string system_;
  Interrupt* const interrupt_;
  v1::Chat conversation_;
};

struct Arguments {
  ConnectionFlags connection;
  GenerateFlags flags;
  std::string system;
};

absl::Status Run(Arguments* arguments) {
  Interrupt interrupt;
  ConnectionFlags& where = arguments->connection;
  if (where.server.empty() && where.model_dir.empty()) where.server = "127.0.0.1:50051";
  v1::GenerateRequest request;
  RETURN_IF_ERROR(FillRequest(arguments->flags, &request));
  request.mutable_output()->set_parse_answer(true);
  ASSIGN_OR_RETURN(Connection connection, Connect(where));
  std::printf("Chat with %s. /help lists the commands, Ctrl-D ends.\n",
              where.server.empty() ? where.model_dir.c_str() : where.server.c_str());
  Chat(std::move(connection), std::move(request), arguments->system, &interrupt).Loop();
  return absl::OkStatus();
}

}  // namespace

void AddChatCommand(CLI::App& app, int* exit_code) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* chat =
      app.add_subcommand("chat", "Talk with a model, with a server or with a model folder");
  chat->add_option("MODEL_DIR", arguments->connection.model_dir, "Model folder");
  chat->add_option("--server", arguments->connection.server,
                   "A running server, HOST:PORT [127.0.0.1:50051]");
  AddClientFlags(chat, &arguments->connection.client);
  chat->add_option("--system", arguments->system, "System message");
  chat->add_option("--dtype", arguments->connection.dtype, "With a folder: auto, f32 or bf16");
  chat->add_option("--threads", arguments->connection.threads, "With a folder: threads; 0: all");
  AddGenerateFlags(chat, &arguments->flags);
  chat->callback([arguments, exit_code] {
    const absl::Status status = Run(arguments.get());
    if (!status.ok()) {
      std::fprintf(stderr, "weir chat: %s: %s\n", absl::StatusCodeToString(status.code()).c_str(),
                   std::string(status.message()).c_str());
    }
    *exit_code = status.ok() ? 0 : 1;
  });
}

}  // namespace weir::server
