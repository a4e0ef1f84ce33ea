#include "gateway/openai/answer_logprobs.h"

#include <algorithm>

#include "gateway/openai/json_text.h"

namespace weir::gateway {
namespace {

std::string_view Piece(const v1::Logprobs& logprobs, int token) {
  return token < logprobs.pieces_size() ? std::string_view(logprobs.pieces(token)) : "";
}
std::string_view TopPiece(const v1::Logprobs& logprobs, int entry) {
  return entry < logprobs.top_pieces_size() ? std::string_view(logprobs.top_pieces(entry)) : "";
}

void Comma(std::string* items) {
  if (!items->empty()) items->push_back(',');
}

// {"token": ..., "logprob": ..., "bytes": ...  without the closing brace.
void BeginEntry(std::string_view piece, float logprob, std::string* out) {
  out->append("{\"token\":");
  AppendJsonString(piece, out);
  out->append(",\"logprob\":");
  AppendJsonFloat(logprob, out);
  out->append(",\"bytes\":");
  AppendJsonBytes(piece, out);
}

void AppendPromptEntry(int32_t id, float logprob, std::string_view piece, std::string* out) {
  out->push_back('"');
  AppendJsonInt(id, out);
  out->append("\":{\"logprob\":");
  AppendJsonFloat(logprob, out);
  out->append(",\"decoded_token\":");
  AppendJsonString(piece, out);
  out->push_back('}');
}

}  // namespace

int64_t CountCharacters(std::string_view text) {
  return std::count_if(text.begin(), text.end(),
                       [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; });
}

void AppendChatLogprobs(const v1::Logprobs& logprobs, int num_tokens, std::string* items) {
  for (int i = 0; i < num_tokens; ++i) {
    Comma(items);
    BeginEntry(Piece(logprobs, i), logprobs.logprobs(i), items);
    items->append(",\"top_logprobs\":[");
    for (int k = i * logprobs.top_n(); k < (i + 1) * logprobs.top_n(); ++k) {
      if (k > i * logprobs.top_n()) items->push_back(',');
      BeginEntry(TopPiece(logprobs, k), logprobs.top_logprobs(k), items);
      items->push_back('}');
    }
    items->append("]}");
  }
}

void AppendPromptLogprobs(const v1::Logprobs& logprobs, std::string* items) {
  for (int i = 0; i < logprobs.token_ids_size(); ++i) {
    Comma(items);
    items->push_back('{');
    AppendPromptEntry(logprobs.token_ids(i), logprobs.logprobs(i), Piece(logprobs, i), items);
    for (int k = i * logprobs.top_n(); k < (i + 1) * logprobs.top_n(); ++k) {
      if (logprobs.top_token_ids(k) == logprobs.token_ids(i)) continue;
      items->push_back(',');
      AppendPromptEntry(logprobs.top_token_ids(k), logprobs.top_logprobs(k), TopPiece(logprobs, k),
                        items);
    }
    items->push_back('}');
  }
}

void LogprobColumns::AppendToken(std::string_view piece) {
  for (std::string* column : {&tokens_, &token_logprobs_, &top_logprobs_, &text_offset_}) {
    Comma(column);
  }
  AppendJsonString(piece, &tokens_);
  AppendJsonInt(offset_, &text_offset_);
  offset_ += CountCharacters(piece);
}

void LogprobColumns::AppendUnknown(std::string_view piece) {
  AppendToken(piece);
  token_logprobs_.append("null");
  top_logprobs_.append("null");
}

void LogprobColumns::Append(const v1::Logprobs& logprobs, int num_tokens) {
  for (int i = 0; i < num_tokens; ++i) {
    AppendToken(Piece(logprobs, i));
    AppendJsonFloat(logprobs.logprobs(i), &token_logprobs_);
    top_logprobs_.push_back('{');
    for (int k = i * logprobs.top_n(); k < (i + 1) * logprobs.top_n(); ++k) {
      if (k > i * logprobs.top_n()) top_logprobs_.push_back(',');
      AppendJsonString(TopPiece(logprobs, k), &top_logprobs_);
      top_logprobs_.push_back(':');
      AppendJsonFloat(logprobs.top_logprobs(k), &top_logprobs_);
    }
    top_logprobs_.push_back('}');
  }
}

void LogprobColumns::AppendTo(std::string* out) const {
  out->append("{\"tokens\":[").append(tokens_);
  out->append("],\"token_logprobs\":[").append(token_logprobs_);
  out->append("],\"top_logprobs\":[").append(top_logprobs_);
  out->append("],\"text_offset\":[").append(text_offset_);
  out->append("]}");
}

}  // namespace weir::gateway
