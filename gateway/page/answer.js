// One streamed answer: chunks of /v1/chat/completions put together. No document, no network: the
// clock is handed in.

const MIN_SPAN_MS = 50;

export class AnswerBuilder {
  #clock; // () -> milliseconds
  #sentMs;
  #firstMs = null;
  #lastMs = null;
  #reasoningMs = null; // when something else than reasoning first came
  #pieces = 0;
  #usage = null;
  #finish = null;
  #calls = [];
  content = "";
  reasoning = "";

  constructor(clock) {
    this.#clock = clock;
    this.#sentMs = clock();
  }

  // Takes in one chunk; true when there is something new to show.
  apply(chunk) {
    if (chunk.usage) this.#usage = chunk.usage;
    const choice = chunk.choices?.[0];
    if (choice === undefined) return false;
    if (choice.finish_reason) this.#finish = choice.finish_reason;
    const delta = choice.delta ?? {};
    const reasoning = delta.reasoning_content ?? delta.reasoning ?? "";
    const content = delta.content ?? "";
    const calls = delta.tool_calls ?? [];
    if (reasoning === "" && content === "" && calls.length === 0)
      return choice.finish_reason != null;
    this.#lastMs = this.#clock();
    this.#firstMs ??= this.#lastMs;
    if (reasoning === "") this.#reasoningMs ??= this.#lastMs;
    this.#pieces++;
    this.reasoning += reasoning;
    this.content += content;
    for (const call of calls) this.#addCall(call);
    return true;
  }

  #addCall(call) {
    const index = call.index ?? this.#calls.length;
    this.#calls[index] ??= { id: "", name: "", arguments: "" };
    const held = this.#calls[index];
    if (call.id) held.id = call.id;
    if (call.function?.name) held.name += call.function.name;
    if (call.function?.arguments) held.arguments += call.function.arguments;
  }

  get ended() {
    return this.#finish !== null;
  }

  // While reasoning runs: since when, in seconds; afterwards how long it took.
  get reasoningSeconds() {
    if (this.#firstMs === null) return 0;
    return ((this.#reasoningMs ?? this.#clock()) - this.#firstMs) / 1000;
  }

  get isReasoning() {
    return this.reasoning !== "" && this.#reasoningMs === null && this.#finish === null;
  }

  // The message as the conversation keeps it.
  message() {
    const message = { role: "assistant", content: this.content };
    if (this.reasoning !== "") {
      message.reasoning = this.reasoning;
      message.reasoningSeconds = this.reasoningSeconds;
    }
    const calls = this.#calls.filter((call) => call !== undefined);
    if (calls.length > 0)
      message.toolCalls = calls.map((call, index) => ({ ...call, id: call.id || `call_${index}` }));
    message.stats = this.#stats();
    return message;
  }

  // {tokens, exact, promptTokens, firstSeconds, perSecond, finish}; null where nothing is known.
  // Without usage (a stopped answer) the pieces of the stream are counted, which may hold more than
  // one token each.
  #stats() {
    const tokens = this.#usage?.completion_tokens ?? this.#pieces;
    return {
      tokens,
      exact: this.#usage !== null,
      promptTokens: this.#usage?.prompt_tokens ?? null,
      firstSeconds: this.#firstMs === null ? null : (this.#firstMs - this.#sentMs) / 1000,
      perSecond: this.#rate(tokens),
      finish: this.#finish,
    };
  }

  // The first token ends the wait; the rate is that of those after it. A short answer may arrive
  // all at once, which says nothing of how fast it was made: then it is that of the whole time.
  #rate(tokens) {
    if (tokens < 2) return null;
    const ms = this.#lastMs - this.#firstMs;
    return ms >= MIN_SPAN_MS
      ? ((tokens - 1) / ms) * 1000
      : (tokens / (this.#lastMs - this.#sentMs)) * 1000;
  }
}

const round = (value, digits) => value.toFixed(digits);

// The line under an answer.
export function statsText(stats) {
  const parts = [];
  if (stats.perSecond != null)
    parts.push(`${round(stats.perSecond, stats.perSecond < 100 ? 1 : 0)} tokens/s`);
  if (stats.firstSeconds != null) {
    const ms = stats.firstSeconds * 1000;
    parts.push(
      `first token after ${ms < 1000 ? `${round(ms, 0)} ms` : `${round(stats.firstSeconds, 2)} s`}`,
    );
  }
  if (stats.tokens > 0) {
    parts.push(
      `${stats.exact ? "" : "about "}${stats.tokens} ${stats.tokens === 1 ? "token" : "tokens"}`,
    );
  }
  if (stats.promptTokens != null) parts.push(`prompt ${stats.promptTokens}`);
  if (stats.finish === "length") parts.push("ended at its length limit");
  if (stats.finish === "content_filter") parts.push("filtered");
  if (stats.stopped) parts.push("stopped by you");
  return parts.join(" · ");
}

// What of a growing text has become whole sentences or lines since `from`: [text, new from]. A
// screen reader hears these, not single tokens.
export function wholeSentences(text, from, ended) {
  if (ended) return [text.slice(from), text.length];
  const rest = text.slice(from);
  const end = Math.max(
    rest.lastIndexOf("\n"),
    ...[". ", "! ", "? ", "。"].map((mark) => rest.lastIndexOf(mark)),
  );
  return end < 0 ? ["", from] : [rest.slice(0, end + 1), from + end + 1];
}
