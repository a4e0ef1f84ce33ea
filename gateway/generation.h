// The answers that the model makes: chat/completions, completions, tokenize, detokenize.
#pragma once

#include <boost/asio/awaitable.hpp>

namespace weir::gateway {

class Connection;
struct Exchange;

// Both on the connection's thread. When they return, the answer is sent, or the client has left and
// what ran for it is cancelled.
boost::asio::awaitable<void> ServeGeneration(Connection& connection, Exchange& exchange);
boost::asio::awaitable<void> ServeTokenizer(Connection& connection, Exchange& exchange);

}  // namespace weir::gateway
