#include "server/call_header.h"

namespace weir::server {
namespace {

using grpc::experimental::InterceptionHookPoints;

class Adder final : public grpc::experimental::Interceptor {
 public:
  Adder(const std::string* name, const std::string* value) : name_(name), value_(value) {}

  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::PRE_SEND_INITIAL_METADATA)) {
      methods->GetSendInitialMetadata()->emplace(*name_, *value_);
    }
    methods->Proceed();
  }

 private:
  const std::string* const name_;
  const std::string* const value_;
};

class Factory final : public grpc::experimental::ClientInterceptorFactoryInterface {
 public:
  Factory(const std::string& name, const std::string& value) : name_(name), value_(value) {}
  grpc::experimental::Interceptor* CreateClientInterceptor(
      grpc::experimental::ClientRpcInfo*) override {
    return new Adder(&name_, &value_);  // gRPC takes it
  }

 private:
  const std::string name_, value_;
};

}  // namespace

std::vector<std::unique_ptr<grpc::experimental::ClientInterceptorFactoryInterface>> WithHeader(
    const std::string& name, const std::string& value) {
  std::vector<std::unique_ptr<grpc::experimental::ClientInterceptorFactoryInterface>> factories;
  factories.push_back(std::make_unique<Factory>(name, value));
  return factories;
}

}  // namespace weir::server
