#include "server/error_mapping.h"

#include <grpcpp/support/status.h>

#include "core/error_details.h"
#include "gmock/gmock.h"
#include "google/rpc/error_details.pb.h"
#include "gtest/gtest.h"
#include "server/utf8.h"
#include "tests/server/test_server.h"

namespace weir::server {
namespace {

using ::testing::HasSubstr;
using weir::testing::GetDetail;

TEST(ErrorMappingTest, PlainStatusesKeepCodeAndMessage) {
  EXPECT_TRUE(ToGrpc(absl::OkStatus()).ok());
  const grpc::Status status = ToGrpc(absl::NotFoundError("no such thing"));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(status.error_message(), "no such thing");
  EXPECT_EQ(status.error_details(), "");
}

TEST(ErrorMappingTest, FieldsBecomeBadRequest) {
  const grpc::Status status = ToGrpc(InvalidFields({{"n", "is 0"}, {"sampling.top_p", "is 2"}}));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  google::rpc::BadRequest bad;
  ASSERT_TRUE(GetDetail(status, &bad));
  ASSERT_EQ(bad.field_violations_size(), 2);
  EXPECT_EQ(bad.field_violations(0).field(), "n");
  EXPECT_EQ(bad.field_violations(1).description(), "is 2");
}

TEST(ErrorMappingTest, ExhaustionNamesTheResourceAndWhenToRetry) {
  const grpc::Status status = ToGrpc(Exhausted("queue", "the queue is full (3)", 1250));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  google::rpc::QuotaFailure quota;
  google::rpc::RetryInfo retry;
  ASSERT_TRUE(GetDetail(status, &quota));
  ASSERT_TRUE(GetDetail(status, &retry));
  EXPECT_EQ(quota.violations(0).subject(), "queue");
  EXPECT_THAT(quota.violations(0).description(), HasSubstr("full (3)"));
  EXPECT_EQ(retry.retry_delay().seconds(), 1);
  EXPECT_EQ(retry.retry_delay().nanos(), 250'000'000);
}

TEST(ErrorMappingTest, PreconditionsSayWhatIsMissing) {
  const grpc::Status status = ToGrpc(MissingPrecondition("TOKENIZER", "tiny", "use ids"));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  google::rpc::PreconditionFailure failure;
  ASSERT_TRUE(GetDetail(status, &failure));
  EXPECT_EQ(failure.violations(0).type(), "TOKENIZER");
  EXPECT_EQ(failure.violations(0).subject(), "tiny");
  EXPECT_EQ(failure.violations(0).description(), "use ids");
}

// gRPC drops trailers past 8 KiB, and with them the whole status.
TEST(ErrorMappingTest, LongErrorsFitTheTrailer) {
  std::vector<std::pair<std::string, std::string>> fields;
  for (int i = 0; i < 200; ++i)
    fields.emplace_back(std::string(500, 'f'), std::string(5000, '\xff'));
  const grpc::Status status = ToGrpc(InvalidFields(fields));
  EXPECT_LT(status.error_message().size() * 3 + status.error_details().size() * 4 / 3, 8000u);
  EXPECT_EQ(FirstInvalidUtf8(status.error_message()), std::nullopt);
  google::rpc::BadRequest bad;
  ASSERT_TRUE(GetDetail(status, &bad));
  EXPECT_GT(bad.field_violations_size(), 1);
}

}  // namespace
}  // namespace weir::server
