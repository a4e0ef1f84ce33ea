// Conversations: what they hold, how they are kept and how a request is made of them. No document.
//
// A conversation: {id, title, settings, messages}. A message:
//   {role: "user", content}
//   {role: "assistant", content, reasoning?, reasoningSeconds?,
//    toolCalls?: [{id, name, arguments}], stats?, failure?: {message, retryable}}
//   {role: "tool", toolCallId, name, content}

export const EMPTY_SETTINGS = Object.freeze({
  system: "",
  temperature: "",
  top_p: "",
  top_k: "",
  min_p: "",
  max_tokens: "",
  seed: "",
  stop: "",
  tools: "",
  tool_choice: "auto",
});

export const EXAMPLE_TOOLS = JSON.stringify(
  [
    {
      type: "function",
      function: {
        name: "get_weather",
        description: "The weather in a city.",
        parameters: {
          type: "object",
          properties: { city: { type: "string", description: "Name of the city" } },
          required: ["city"],
        },
      },
    },
  ],
  null,
  2,
);

const NUMBERS = {
  temperature: { min: 0, max: 2 },
  top_p: { min: 0, max: 1 },
  top_k: { min: -1, max: 1e9, whole: true },
  min_p: { min: 0, max: 1 },
  max_tokens: { min: 1, max: 1e9, whole: true },
  seed: { min: 0, max: Number.MAX_SAFE_INTEGER, whole: true },
};

export function newConversation(id, settings = EMPTY_SETTINGS) {
  return { id, title: "", settings: { ...EMPTY_SETTINGS, ...settings }, messages: [] };
}

export function titleOf(conversation) {
  const first = conversation.messages.find((message) => message.role === "user")?.content ?? "";
  const words = first.replace(/\s+/g, " ").trim();
  return words === "" ? "New chat" : words.length > 60 ? `${words.slice(0, 57)}…` : words;
}

// A stop string per line; \n, \t and \\ are written so.
export function parseStops(text) {
  const escapes = { n: "\n", t: "\t", "\\": "\\" };
  return text
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => line.replace(/\\([nt\\])/g, (_, c) => escapes[c]));
}

// What the settings say of a request: {fields, problems: {setting: sentence}}. An empty setting is
// left out, so the server's default holds.
export function requestFields(settings) {
  const fields = {};
  const problems = {};
  for (const [name, { min, max, whole }] of Object.entries(NUMBERS)) {
    const text = String(settings[name]).trim();
    if (text === "") continue;
    const value = Number(text);
    if (
      !Number.isFinite(value) ||
      value < min ||
      value > max ||
      (whole && !Number.isInteger(value))
    ) {
      const upTo = max >= 1e9 ? `from ${min}` : `from ${min} to ${max}`;
      problems[name] = `${name} must be a ${whole ? "whole number" : "number"} ${upTo}.`;
    } else {
      fields[name] = value;
    }
  }
  const stops = parseStops(settings.stop);
  if (stops.length > 0) fields.stop = stops;
  if (settings.tools.trim() !== "") {
    try {
      const tools = JSON.parse(settings.tools);
      if (!Array.isArray(tools)) throw new Error("it is no list");
      if (tools.length > 0) {
        fields.tools = tools;
        fields.tool_choice = settings.tool_choice;
      }
    } catch (error) {
      problems.tools = `The tools must be a list in JSON: ${error.message}.`;
    }
  }
  return { fields, problems };
}

function messageForApi(message) {
  if (message.role === "tool") {
    return { role: "tool", tool_call_id: message.toolCallId, content: message.content };
  }
  if (message.role === "user") return { role: "user", content: message.content };
  const out = { role: "assistant", content: message.content };
  if (message.reasoning) out.reasoning_content = message.reasoning;
  if (message.toolCalls) {
    out.tool_calls = message.toolCalls.map((call) => ({
      id: call.id,
      type: "function",
      function: { name: call.name, arguments: call.arguments },
    }));
  }
  return out;
}

// The messages of the API. Answers that failed before their first word are not part of what was
// said.
export function messagesForApi(conversation) {
  const said = conversation.messages.filter(
    (message) => message.role !== "assistant" || message.content !== "" || message.toolCalls,
  );
  const system =
    conversation.settings.system.trim() === ""
      ? []
      : [{ role: "system", content: conversation.settings.system }];
  return [...system, ...said.map(messageForApi)];
}

// The tool calls that wait for a result: those of the last assistant message, when only tool
// results follow.
export function openToolCalls(conversation) {
  const at = conversation.messages.findLastIndex((message) => message.role !== "tool");
  const calls = conversation.messages[at]?.toolCalls ?? [];
  const given = new Set(conversation.messages.slice(at + 1).map((message) => message.toolCallId));
  return calls.filter((call) => !given.has(call.id));
}

const isText = (value) => typeof value === "string";

function checkMessage(message) {
  if (typeof message !== "object" || message === null) throw new Error("a message is no object");
  if (!isText(message.content)) throw new Error("a message has no text as its content");
  const { role, content } = message;
  if (role === "user") return { role, content };
  if (role === "tool") {
    return {
      role,
      content,
      toolCallId: String(message.toolCallId ?? ""),
      name: String(message.name ?? ""),
    };
  }
  if (role !== "assistant") throw new Error(`"${role}" is no role`);
  const out = { role, content };
  if (isText(message.reasoning)) out.reasoning = message.reasoning;
  if (Number.isFinite(message.reasoningSeconds)) out.reasoningSeconds = message.reasoningSeconds;
  if (Array.isArray(message.toolCalls) && message.toolCalls.length > 0) {
    out.toolCalls = message.toolCalls.map((call) => ({
      id: String(call?.id ?? ""),
      name: String(call?.name ?? ""),
      arguments: String(call?.arguments ?? ""),
    }));
  }
  if (typeof message.stats === "object" && message.stats !== null)
    out.stats = checkStats(message.stats);
  if (isText(message.failure?.message)) {
    out.failure = {
      message: message.failure.message,
      retryable: message.failure.retryable === true,
    };
  }
  return out;
}

function checkStats(stats) {
  const number = (value) => (Number.isFinite(value) ? value : null);
  return {
    tokens: number(stats.tokens) ?? 0,
    exact: stats.exact === true,
    promptTokens: number(stats.promptTokens),
    firstSeconds: number(stats.firstSeconds),
    perSecond: number(stats.perSecond),
    finish: isText(stats.finish) ? stats.finish : null,
    stopped: stats.stopped === true,
  };
}

// A conversation out of anything, with nothing in it but what belongs there. Throws a sentence.
export function checkConversation(value, id) {
  if (typeof value !== "object" || value === null || !Array.isArray(value.messages)) {
    throw new Error("it holds no list of messages");
  }
  const settings = { ...EMPTY_SETTINGS };
  for (const name of Object.keys(settings)) {
    if (isText(value.settings?.[name])) settings[name] = value.settings[name];
  }
  if (!["auto", "none", "required"].includes(settings.tool_choice)) settings.tool_choice = "auto";
  return { ...newConversation(id, settings), messages: value.messages.map(checkMessage) };
}

export function exportText(conversations) {
  const kept = conversations.map(({ settings, messages }) => ({ settings, messages }));
  return `${JSON.stringify({ weir_chats: 1, conversations: kept }, null, 2)}\n`;
}

// The conversations of an exported file, with new ids. Throws a sentence.
export function importText(text, newId) {
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    throw new Error("it is no JSON");
  }
  if (value?.weir_chats !== 1 || !Array.isArray(value.conversations))
    throw new Error("it is no export of this page");
  return value.conversations.map((conversation) => checkConversation(conversation, newId()));
}

const PREFIX = "weir.chat.";

// Conversations in a Storage (localStorage), one entry each, the newest first in the list.
export class Store {
  #storage;

  constructor(storage) {
    this.#storage = storage;
  }

  // What cannot be read (another page's, a broken entry) is passed over.
  all() {
    const found = [];
    for (let at = 0; at < this.#storage.length; at++) {
      const name = this.#storage.key(at);
      if (!name.startsWith(PREFIX)) continue;
      try {
        found.push(
          checkConversation(JSON.parse(this.#storage.getItem(name)), name.slice(PREFIX.length)),
        );
      } catch {
        continue;
      }
    }
    return found.sort((a, b) => (a.id < b.id ? 1 : -1));
  }

  // false: the browser's storage is full or closed.
  save(conversation) {
    try {
      this.#storage.setItem(PREFIX + conversation.id, JSON.stringify(conversation));
      return true;
    } catch {
      return false;
    }
  }

  remove(id) {
    this.#storage.removeItem(PREFIX + id);
  }
}
