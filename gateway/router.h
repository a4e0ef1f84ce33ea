// Which path is what.
#pragma once

#include <string>
#include <string_view>

namespace weir::gateway {

enum class Route : unsigned char {
  kChat,
  kCompletions,
  kModels,
  kModel,  // /v1/models/{id}
  kTokenize,
  kDetokenize,
  kHealth,
  kReady,
  kVersion,
  kMetrics,
  kPage,
  kUnknown,
};
inline constexpr int kNumRoutes = 12;

Route FindRoute(std::string_view path);
// "GET, HEAD, OPTIONS": the methods of a route; empty for kUnknown.
std::string_view AllowedMethods(Route route);
// Whether `method` is among them.
bool IsAllowed(Route route, std::string_view method);
// Whether it asks for a key, where there are keys: everything that shows or uses the model.
bool NeedsKey(Route route);
// The label in metrics: "/v1/chat/completions"; one name for all pages, and one for unknown paths.
std::string_view RouteName(Route route);

}  // namespace weir::gateway
