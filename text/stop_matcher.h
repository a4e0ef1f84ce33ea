// Ends a text at the first of some strings, also where the string lies over many pieces.
//
// Text that could still turn out to be the beginning of a stop string is held back until that is
// decided, so no byte of a stop string is ever given out (unless it is to be included). The text
// is taken in pieces of valid UTF-8 and given out in pieces of valid UTF-8.
//
// Of several matches the one that ends first counts; of those that end at the same byte, the
// longest. Cost: one automaton step per byte, however many stop strings there are.
//
// Not thread-safe; one object per sequence.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace weir::text {

class StopMatcher {
 public:
  struct Result {
    std::string text;     // safe to give out
    int stop_index = -1;  // which stop string ended the text; -1: none yet
  };

  // Empty stop strings are ignored (they would end every text at once). include_stop: the stop
  // string that ended the text is given out as its last part.
  explicit StopMatcher(std::vector<std::string> stops, bool include_stop = false);

  // After a match the text is over: further pushes give nothing and repeat the index.
  Result Push(std::string_view text);

  // What is still held back: the text ended without completing a stop string.
  std::string Flush();

  bool stopped() const { return stop_index_ >= 0; }

 private:
  struct Node {
    std::vector<std::pair<unsigned char, int32_t>> children;
    int32_t fail = 0;
    int32_t depth = 0;  // bytes
    int32_t stop = -1;  // the longest stop string that ends here, also by way of fail
  };

  void Insert(int32_t stop);
  void LinkFailures();
  int32_t Child(int32_t node, unsigned char byte) const;  // -1: none
  int32_t Step(int32_t node, unsigned char byte) const;

  std::vector<std::string> stops_;
  bool include_stop_;
  std::vector<Node> nodes_;  // a trie of the stop strings; 0 is the root
  int32_t state_ = 0;
  int stop_index_ = -1;
  std::string held_;  // not yet given out
};

}  // namespace weir::text
