#include "gateway/router.h"

namespace weir::gateway {
namespace {

constexpr std::string_view kModelPrefix = "/v1/models/";
constexpr std::string_view kPagePrefix = "/page/";

bool IsPost(Route route) {
  return route == Route::kChat || route == Route::kCompletions || route == Route::kTokenize ||
         route == Route::kDetokenize;
}

}  // namespace

Route FindRoute(std::string_view path) {
  if (path == "/v1/chat/completions") return Route::kChat;
  if (path == "/v1/completions") return Route::kCompletions;
  if (path == "/v1/models") return Route::kModels;
  if (path.substr(0, kModelPrefix.size()) == kModelPrefix && path.size() > kModelPrefix.size()) {
    return Route::kModel;
  }
  if (path == "/tokenize") return Route::kTokenize;
  if (path == "/detokenize") return Route::kDetokenize;
  if (path == "/health") return Route::kHealth;
  if (path == "/ready") return Route::kReady;
  if (path == "/version") return Route::kVersion;
  if (path == "/metrics") return Route::kMetrics;
  if (path == "/" || path.substr(0, kPagePrefix.size()) == kPagePrefix) return Route::kPage;
  return Route::kUnknown;
}

std::string_view AllowedMethods(Route route) {
  if (route == Route::kUnknown) return "";
  return IsPost(route) ? "POST, OPTIONS" : "GET, HEAD, OPTIONS";
}

bool IsAllowed(Route route, std::string_view method) {
  if (route == Route::kUnknown) return false;
  if (IsPost(route)) return method == "POST";
  return method == "GET" || method == "HEAD";
}

bool NeedsKey(Route route) {
  return IsPost(route) || route == Route::kModels || route == Route::kModel;
}

std::string_view RouteName(Route route) {
  switch (route) {
    case Route::kChat:
      return "/v1/chat/completions";
    case Route::kCompletions:
      return "/v1/completions";
    case Route::kModels:
      return "/v1/models";
    case Route::kModel:
      return "/v1/models/{id}";
    case Route::kTokenize:
      return "/tokenize";
    case Route::kDetokenize:
      return "/detokenize";
    case Route::kHealth:
      return "/health";
    case Route::kReady:
      return "/ready";
    case Route::kVersion:
      return "/version";
    case Route::kMetrics:
      return "/metrics";
    case Route::kPage:
      return "/page";
    case Route::kUnknown:
      break;
  }
  return "other";
}

}  // namespace weir::gateway
