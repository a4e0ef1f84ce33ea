#include "text/stop_matcher.h"

#include <algorithm>

namespace weir::text {
namespace {

// The largest cut <= size that is not inside a UTF-8 character.
size_t CharacterStart(std::string_view text, size_t cut) {
  while (cut > 0 && cut < text.size() && (static_cast<unsigned char>(text[cut]) & 0xC0) == 0x80) {
    --cut;
  }
  return cut;
}

}  // namespace

StopMatcher::StopMatcher(std::vector<std::string> stops, bool include_stop)
    : stops_(std::move(stops)), include_stop_(include_stop), nodes_(1) {
  for (size_t i = 0; i < stops_.size(); ++i) {
    if (!stops_[i].empty()) Insert(static_cast<int32_t>(i));
  }
  LinkFailures();
}

void StopMatcher::Insert(int32_t stop) {
  int32_t node = 0;
  for (const unsigned char byte : stops_[stop]) {
    int32_t next = Child(node, byte);
    if (next < 0) {
      next = static_cast<int32_t>(nodes_.size());
      nodes_[node].children.emplace_back(byte, next);
      nodes_.push_back(
          Node{.children = {}, .fail = 0, .depth = nodes_[node].depth + 1, .stop = -1});
    }
    node = next;
  }
  if (nodes_[node].stop < 0) nodes_[node].stop = stop;
}

// Aho and Corasick: the failure link of a node is the longest proper suffix of its string that is
// in the trie; found breadth first.
void StopMatcher::LinkFailures() {
  std::vector<int32_t> queue = {0};
  for (size_t head = 0; head < queue.size(); ++head) {
    const int32_t parent = queue[head];
    for (const auto& [byte, node] : nodes_[parent].children) {
      nodes_[node].fail = parent == 0 ? 0 : Step(nodes_[parent].fail, byte);
      if (nodes_[node].stop < 0) nodes_[node].stop = nodes_[nodes_[node].fail].stop;
      queue.push_back(node);
    }
  }
}

int32_t StopMatcher::Child(int32_t node, unsigned char byte) const {
  for (const auto& [label, child] : nodes_[node].children) {
    if (label == byte) return child;
  }
  return -1;
}

int32_t StopMatcher::Step(int32_t node, unsigned char byte) const {
  while (true) {
    const int32_t child = Child(node, byte);
    if (child >= 0) return child;
    if (node == 0) return 0;
    node = nodes_[node].fail;
  }
}

StopMatcher::Result StopMatcher::Push(std::string_view text) {
  if (stopped()) return {"", stop_index_};
  for (size_t i = 0; i < text.size(); ++i) {
    state_ = Step(state_, static_cast<unsigned char>(text[i]));
    const int32_t stop = nodes_[state_].stop;
    if (stop < 0) continue;
    held_.append(text.substr(0, i + 1));
    if (!include_stop_) held_.resize(CharacterStart(held_, held_.size() - stops_[stop].size()));
    stop_index_ = stop;
    return {std::exchange(held_, {}), stop_index_};
  }
  held_.append(text);
  const size_t safe = CharacterStart(held_, held_.size() - nodes_[state_].depth);
  std::string out = held_.substr(0, safe);
  held_.erase(0, safe);
  return {std::move(out), -1};
}

std::string StopMatcher::Flush() {
  state_ = 0;
  return std::exchange(held_, {});
}

}  // namespace weir::text
