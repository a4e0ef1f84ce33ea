#include "gateway/request_parser.h"

#include <boost/beast/core/string.hpp>
#include <boost/beast/http/basic_parser.hpp>
#include <boost/beast/http/error.hpp>

#include "absl/strings/str_cat.h"

namespace weir::gateway {
namespace {

namespace beast = boost::beast;
namespace http = boost::beast::http;
using boost::beast::error_code;

// Of the chunk headers and trailers, which no other limit covers.
constexpr size_t kMaxFraming = 16 << 10;
// A body of many tiny chunks costs more to read than it holds.
constexpr int64_t kMaxChunks = 1 << 16;

class Parser final : public http::basic_parser<true> {
 public:
  Request request;
  bool two_hosts = false, has_host = false;
  bool bad_encoding = false, too_many_chunks = false;

  bool many_chunks_left() const { return chunks_ < kMaxChunks; }

 private:
  void on_request_impl(http::verb, beast::string_view method, beast::string_view target,
                       int version, error_code&) override {
    request.method.assign(method.data(), method.size());
    request.target.assign(target.data(), target.size());
    request.http11 = version == 11;
  }

  void on_field_impl(http::field field, beast::string_view name, beast::string_view value,
                     error_code& ec) override {
    if (header_done_) return;  // a trailer: may not say anything that the header did not
    const auto keep = [&value](std::string* to) { to->assign(value.data(), value.size()); };
    switch (field) {
      case http::field::host:
        two_hosts = has_host;
        has_host = true;
        return keep(&request.host);
      case http::field::authorization:
        return keep(&request.authorization);
      case http::field::origin:
        return keep(&request.origin);
      case http::field::if_none_match:
        return keep(&request.if_none_match);
      case http::field::accept_encoding:
        return keep(&request.accept_encoding);
      case http::field::access_control_request_method:
        return keep(&request.preflight_method);
      case http::field::access_control_request_headers:
        return keep(&request.preflight_headers);
      case http::field::expect:
        request.expects_continue = beast::iequals(value, "100-continue");
        return;
      case http::field::transfer_encoding:
        // Anything else leaves open where the body ends.
        bad_encoding = !request.http11 || !beast::iequals(value, "chunked");
        if (bad_encoding) ec = http::error::bad_transfer_encoding;
        return;
      default:
        break;
    }
    if (beast::iequals(name, "x-request-id")) return keep(&request.request_id);
    if (beast::iequals(name, "traceparent")) return keep(&request.traceparent);
    if (beast::iequals(name, "tracestate")) return keep(&request.tracestate);
  }

  void on_header_impl(error_code&) override { header_done_ = true; }
  void on_body_init_impl(const boost::optional<std::uint64_t>&, error_code&) override {}

  std::size_t on_body_impl(beast::string_view body, error_code&) override {
    request.body.append(body.data(), body.size());
    return body.size();
  }
  void on_chunk_header_impl(std::uint64_t, beast::string_view, error_code& ec) override {
    if (++chunks_ <= kMaxChunks) return;
    too_many_chunks = true;
    ec = http::error::bad_chunk;
  }
  std::size_t on_chunk_body_impl(std::uint64_t, beast::string_view body, error_code& ec) override {
    return on_body_impl(body, ec);
  }
  void on_finish_impl(error_code&) override {}
  void on_response_impl(int, beast::string_view, int, error_code&) override {}

  bool header_done_ = false;
  int64_t chunks_ = 0;
};

}  // namespace

struct RequestParser::Impl {
  Limits limits;
  Parser parser;
  State state = State::kHeader;
  bool started = false;
  size_t header_bytes = 0;
  int status = 0;
  std::string error;

  void Fail(int code, std::string sentence) {
    state = State::kFailed;
    status = code;
    error = std::move(sentence);
  }
  void FailFor(const error_code& ec);
  void HeaderDone();
};

void RequestParser::Impl::FailFor(const error_code& ec) {
  if (ec == http::error::header_limit) {
    Fail(431, absl::StrCat("The request's header is larger than ", limits.header_bytes, " bytes."));
  } else if (ec == http::error::body_limit) {
    Fail(413, absl::StrCat("The request's body is larger than ", limits.body_bytes, " bytes."));
  } else if (ec == http::error::bad_version) {
    Fail(505, "Only HTTP/1.0 and HTTP/1.1 are spoken here.");
  } else if (parser.bad_encoding) {
    Fail(501, "The only transfer encoding taken is chunked, in HTTP/1.1.");
  } else if (parser.too_many_chunks) {
    Fail(400, absl::StrCat("The body has more than ", kMaxChunks, " chunks."));
  } else {
    Fail(400, absl::StrCat("This is no HTTP request: ", ec.message(), "."));
  }
}

void RequestParser::Impl::HeaderDone() {
  Request& request = parser.request;
  request.keep_alive = parser.keep_alive();
  if (parser.two_hosts || (request.http11 && !parser.has_host)) {
    return Fail(400, "An HTTP/1.1 request has exactly one Host field.");
  }
  state = parser.is_done() ? State::kDone : State::kBody;
}

RequestParser::RequestParser(const Limits& limits) : impl_(std::make_unique<Impl>()) {
  impl_->limits = limits;
  impl_->parser.header_limit(static_cast<uint32_t>(limits.header_bytes));
  impl_->parser.body_limit(limits.body_bytes);
}

RequestParser::~RequestParser() = default;

size_t RequestParser::Put(std::string_view input) {
  size_t taken = 0;
  while (impl_->state == State::kHeader || impl_->state == State::kBody) {
    const bool in_header = impl_->state == State::kHeader;
    if (in_header && !impl_->started) {
      // Some clients end a body with an empty line of their own.
      while (taken < input.size() && (input[taken] == '\r' || input[taken] == '\n')) ++taken;
    }
    const std::string_view rest = input.substr(taken);
    if (rest.empty()) break;
    impl_->started = true;
    error_code ec;
    const size_t now = impl_->parser.put({rest.data(), rest.size()}, ec);
    taken += now;
    if (in_header) {
      impl_->header_bytes += now;
      // The library counts only what it has not yet taken.
      if (impl_->header_bytes > impl_->limits.header_bytes) ec = http::error::header_limit;
    }
    const size_t left = rest.size() - now;
    if (ec == http::error::need_more) {
      const size_t most =
          in_header ? impl_->limits.header_bytes - impl_->header_bytes : kMaxFraming;
      if (left >= most) {
        impl_->FailFor(in_header ? error_code(http::error::header_limit)
                                 : error_code(http::error::bad_chunk));
      }
      break;
    }
    if (ec) {
      impl_->FailFor(ec);
      break;
    }
    if (in_header && impl_->parser.is_header_done()) {
      impl_->HeaderDone();
      break;
    }
    if (!in_header && impl_->parser.is_done()) impl_->state = State::kDone;
  }
  return taken;
}

RequestParser::State RequestParser::state() const { return impl_->state; }
bool RequestParser::started() const { return impl_->started; }
int RequestParser::status() const { return impl_->status; }
const std::string& RequestParser::error() const { return impl_->error; }
Request& RequestParser::request() { return impl_->parser.request; }

}  // namespace weir::gateway
