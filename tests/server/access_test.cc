// Who may call on the socket: API keys, TLS, client certificates. Real connections.
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "core/access_keys.h"
#include "gmock/gmock.h"
#include "google/rpc/error_details.pb.h"
#include "gtest/gtest.h"
#include "server/tls.h"
#include "tests/server/test_model.h"
#include "tests/server/test_server.h"
#include "weir/v1/info.grpc.pb.h"
#include "weir/v1/tokenize.grpc.pb.h"

namespace weir::testing {
namespace {

using ::testing::HasSubstr;

std::string Read(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

class AccessTest : public ::testing::Test {
 protected:
  AccessTest() {
    std::filesystem::create_directories(folder_);
    options_.model = TestModel();
    options_.listen = true;
  }
  ~AccessTest() override { std::filesystem::remove_all(folder_); }

  std::string Path(const std::string& name) const { return folder_ + "/" + name; }

  void UseKeys(const std::vector<AccessKey>& keys) {
    std::ofstream file(Path("keys"));
    for (const AccessKey& key : keys) file << FormatAccessKey(key) << "\n";
    options_.server.api_keys = Path("keys");
  }

  // ca.pem, and server.pem and client.pem signed by it.
  void MakeCertificates() {
    const std::string script = absl::StrCat(
        "cd ", folder_,
        " && EC='ec -pkeyopt ec_paramgen_curve:prime256v1' && openssl req -x509 -newkey $EC -nodes"
        " -keyout ca.key -out ca.pem -subj /CN=authority -days 2 && for n in server client; do"
        " openssl req -newkey $EC -nodes -keyout $n.key -out $n.csr -subj /CN=$n &&"
        " echo subjectAltName=IP:127.0.0.1 > $n.ext && openssl x509 -req -in $n.csr -CA ca.pem"
        " -CAkey ca.key -CAcreateserial -days 2 -out $n.pem -extfile $n.ext || exit 1; done");
    ASSERT_EQ(std::system(absl::StrCat("(", script, ") > /dev/null 2>&1").c_str()), 0);
  }

  static grpc::Status GetModel(const std::shared_ptr<grpc::Channel>& channel,
                               const std::string& secret = "") {
    const auto stub = v1::ModelService::NewStub(channel);
    grpc::ClientContext rpc;
    rpc.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(5));
    if (!secret.empty()) rpc.AddMetadata("authorization", "Bearer " + secret);
    v1::GetModelResponse response;
    const grpc::Status status = stub->GetModel(&rpc, {}, &response);
    EXPECT_EQ(status.ok(), !response.model().name().empty());
    return status;
  }

  // A stream that has begun, so that it runs while the test looks.
  struct Open {
    grpc::ClientContext rpc;
    std::unique_ptr<grpc::ClientReader<v1::GenerateEvent>> reader;
    bool begun = false;
  };
  static std::unique_ptr<Open> Begin(const std::shared_ptr<grpc::Channel>& channel,
                                     const std::string& secret, int tokens) {
    auto open = std::make_unique<Open>();
    open->rpc.AddMetadata("authorization", "Bearer " + secret);
    open->reader = v1::GenerationService::NewStub(channel)->Generate(&open->rpc,
                                                                     IdsRequest({1, 2, 3}, tokens));
    v1::GenerateEvent event;
    open->begun = open->reader->Read(&event) && event.has_accepted();
    return open;
  }
  static grpc::Status End(Open* open) {
    v1::GenerateEvent event;
    while (open->reader->Read(&event)) {
    }
    return open->reader->Finish();
  }

  const std::string folder_ =
      absl::StrCat(::testing::TempDir(), "access_", reinterpret_cast<uintptr_t>(this));
  TestServer::Options options_;
};

TEST_F(AccessTest, WithoutAKeyNothingIsAnsweredButHealth) {
  UseKeys({{"alice", DigestOf("one"), {}}});
  TestServer server(options_);
  const auto channel =
      grpc::CreateChannel(server.server().address(), grpc::InsecureChannelCredentials());
  EXPECT_TRUE(IsServing(channel, ""));
  EXPECT_EQ(GetModel(channel).error_code(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(GetModel(channel, "two").error_code(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_TRUE(GetModel(channel, "one").ok());

  const auto open = Begin(channel, "two", 3);
  EXPECT_FALSE(open->begun);
  EXPECT_EQ(End(open.get()).error_code(), grpc::StatusCode::UNAUTHENTICATED);
  grpc::ClientContext rpc;
  v1::TokenizeRequest tokenize;
  tokenize.set_text("a");
  v1::TokenizeResponse ids;
  EXPECT_EQ(v1::TokenizerService::NewStub(channel)->Tokenize(&rpc, tokenize, &ids).error_code(),
            grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_TRUE(GetModel(server.channel()).ok());  // this process's own door has asked already
  server.ExpectNothingHeld();
}

TEST_F(AccessTest, LimitsOfAKeyAreItsOwnAndComeWithARetryHint) {
  UseKeys({{"alice", DigestOf("one"), {.concurrent = 1}},
           {"bob", DigestOf("two"), {.tokens_per_minute = 10}}});
  options_.step_us = 2000;
  TestServer server(options_);
  const auto channel =
      grpc::CreateChannel(server.server().address(), grpc::InsecureChannelCredentials());
  const auto running = Begin(channel, "one", 50);
  ASSERT_TRUE(running->begun);
  const grpc::Status refused = End(Begin(channel, "one", 1).get());
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(refused.error_message(), HasSubstr("\"alice\" has used its 1 requests at once"));
  google::rpc::RetryInfo retry;
  EXPECT_TRUE(GetDetail(refused, &retry));
  EXPECT_TRUE(End(Begin(channel, "two", 20).get()).ok());  // 3 + 20 tokens: overdrawn
  EXPECT_TRUE(End(running.get()).ok());
  // The server lets go of a call a moment after its client has seen the end.
  server.ExpectNothingHeld();
  grpc::Status again;
  for (int i = 0; i < 200 && !(again = End(Begin(channel, "one", 1).get())).ok(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_TRUE(again.ok()) << again.error_message();
  EXPECT_THAT(End(Begin(channel, "two", 1).get()).error_message(),
              HasSubstr("10 tokens per minute"));
}

TEST_F(AccessTest, TlsAndClientCertificates) {
  MakeCertificates();
  options_.server.grpc_tls_cert = Path("server.pem");
  options_.server.grpc_tls_key = Path("server.key");
  options_.server.grpc_client_ca = Path("ca.pem");
  TestServer server(options_);
  const std::string address = server.server().address();
  EXPECT_FALSE(GetModel(grpc::CreateChannel(address, grpc::InsecureChannelCredentials())).ok());
  grpc::SslCredentialsOptions client;
  client.pem_root_certs = Read(Path("ca.pem"));
  EXPECT_FALSE(GetModel(grpc::CreateChannel(address, grpc::SslCredentials(client))).ok());
  client.pem_cert_chain = Read(Path("client.pem"));
  client.pem_private_key = Read(Path("client.key"));
  const grpc::Status status = GetModel(grpc::CreateChannel(address, grpc::SslCredentials(client)));
  EXPECT_TRUE(status.ok()) << status.error_message();
}

TEST_F(AccessTest, TlsFilesThatDoNotWorkAreNamed) {
  MakeCertificates();
  const auto message = [](const server::TlsFiles& files) {
    return std::string(server::CheckTlsFiles(files).message());
  };
  EXPECT_EQ(message({Path("server.pem"), Path("server.key"), Path("ca.pem")}), "");
  EXPECT_THAT(message({Path("none.pem"), Path("server.key"), ""}), HasSubstr("none.pem"));
  EXPECT_THAT(message({Path("server.key"), Path("server.key"), ""}),
              HasSubstr("is no certificate chain in PEM form"));
  EXPECT_THAT(message({Path("server.pem"), Path("client.key"), ""}), HasSubstr("not that of"));
  EXPECT_THAT(message({Path("server.pem"), Path("server.key"), Path("server.key")}),
              HasSubstr("holds no certificates"));
}

}  // namespace
}  // namespace weir::testing
