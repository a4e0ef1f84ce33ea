#include "gateway/simple_routes.h"

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gateway/backends.h"
#include "gateway/door.h"
#include "gateway/openai/answer.h"
#include "gateway/page/page_files.h"
#include "metrics/registry.h"

namespace weir::gateway {
namespace {

constexpr std::string_view kPagePolicy =
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

using Reply = std::variant<Response, ApiError>;

Response Json(int status, std::string body) {
  Response response;
  response.status = status;
  response.body = std::move(body);
  response.headers.emplace_back("Cache-Control", "no-store");
  return response;
}

Reply Preflight(const Door& door, const Exchange& exchange) {
  Response response;
  response.status = 204;
  response.content_type = "";
  const std::string allowed(AllowedMethods(exchange.route));
  response.headers.emplace_back("Allow", allowed);
  const Request& request = *exchange.request;
  if (request.preflight_method.empty() || door.CorsFor(request.origin).empty()) return response;
  response.headers.emplace_back("Access-Control-Allow-Methods", allowed);
  if (!request.preflight_headers.empty()) {
    // Every header field may be sent: only those that are known are read.
    response.headers.emplace_back("Access-Control-Allow-Headers", request.preflight_headers);
  }
  response.headers.emplace_back("Access-Control-Max-Age", "86400");
  return response;
}

Reply Health(const Door& door) {
  const bool live = !door.own_server || door.draining || !door.backends->lost();
  return Json(live ? 200 : 503, live ? "{\"status\":\"ok\"}" : "{\"status\":\"stalled\"}");
}

Reply Ready(const Door& door) {
  if (door.draining) return Json(503, "{\"status\":\"draining\"}");
  const bool ready = door.backends->ready();
  return Json(ready ? 200 : 503,
              ready ? "{\"status\":\"ready\"}" : "{\"status\":\"no server is ready\"}");
}

ApiError NoServer() { return HttpError(503, "No server is ready to answer; try again.", 1000); }

Reply ModelList(const Door& door) {
  const auto models = door.backends->Models();
  if (models.empty()) return NoServer();
  std::string body = "{\"object\":\"list\",\"data\":[";
  for (size_t i = 0; i < models.size(); ++i) {
    absl::StrAppend(&body, i == 0 ? "" : ",", ModelBody(*models[i]));
  }
  return Json(200, body + "]}");
}

Reply OneModel(const Door& door, const Exchange& exchange) {
  constexpr std::string_view kPrefix = "/v1/models/";
  const std::string id(exchange.request->path().substr(kPrefix.size()));
  const auto models = door.backends->Models();
  if (models.empty()) return NoServer();
  for (const auto& facts : models) {
    if (facts->id == id) return Json(200, ModelBody(*facts));
  }
  return UnknownModel(id, models.front()->id);
}

bool TakesGzip(const Request& request) {
  const std::string& encodings = request.accept_encoding;
  const size_t at = encodings.find("gzip");
  return at != std::string::npos && encodings.compare(at + 4, 4, ";q=0") != 0;
}

Reply Page(const Exchange& exchange) {
  const Request& request = *exchange.request;
  const PageFile* file = FindPageFile(request.path());
  if (file == nullptr) return UnknownPath(request.method, std::string(request.path()));
  const bool gzip = !file->gzip.empty() && TakesGzip(request);
  std::string etag(file->etag);
  if (gzip) etag.insert(etag.size() - 1, "-gzip");
  Response response;
  response.content_type = file->content_type;
  response.headers = {{"ETag", etag},
                      {"Cache-Control", "no-cache"},
                      {"Vary", "Accept-Encoding"},
                      {"Content-Security-Policy", std::string(kPagePolicy)},
                      {"X-Content-Type-Options", "nosniff"},
                      {"Referrer-Policy", "no-referrer"}};
  if (request.if_none_match == etag) {
    response.status = 304;
    return response;
  }
  if (gzip) response.headers.emplace_back("Content-Encoding", "gzip");
  const std::string_view body = gzip ? file->gzip : file->body;
  response.body.assign(body);
  return response;
}

}  // namespace

Reply AnswerSimple(const Door& door, const Exchange& exchange) {
  if (exchange.request->method == "OPTIONS") return Preflight(door, exchange);
  switch (exchange.route) {
    case Route::kHealth:
      return Health(door);
    case Route::kReady:
      return Ready(door);
    case Route::kVersion:
      return Json(200, "{\"version\":\"" WEIR_VERSION "\"}");
    case Route::kModels:
      return ModelList(door);
    case Route::kModel:
      return OneModel(door, exchange);
    case Route::kPage:
      return Page(exchange);
    default:
      return UnknownPath(exchange.request->method, std::string(exchange.request->path()));
  }
}

Response MetricsResponse(const Door& door) {
  Response response;
  response.content_type = "text/plain; version=0.0.4; charset=utf-8";
  response.body = door.registry->Serialize();
  return response;
}

}  // namespace weir::gateway
