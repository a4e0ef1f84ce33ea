import assert from "node:assert/strict";
import { test } from "node:test";

import { AnswerBuilder, statsText, wholeSentences } from "../../../gateway/page/answer.js";
import { failureFrom } from "../../../gateway/page/api.js";
import {
  EMPTY_SETTINGS,
  EXAMPLE_TOOLS,
  Store,
  checkConversation,
  exportText,
  importText,
  messagesForApi,
  newConversation,
  openToolCalls,
  parseStops,
  requestFields,
  titleOf,
} from "../../../gateway/page/conversation.js";

const delta = (fields, rest = {}) => ({
  choices: [{ index: 0, delta: fields, finish_reason: null, ...rest }],
});

test("an answer is put together, timed and counted", () => {
  let now = 1000;
  const builder = new AnswerBuilder(() => now);
  assert.equal(builder.apply(delta({ role: "assistant", content: "" })), false);
  assert.equal(builder.message().stats.firstSeconds, null);
  now = 1250;
  assert.equal(builder.apply(delta({ reasoning_content: "hm" })), true);
  assert.ok(builder.isReasoning);
  now = 1500;
  assert.equal(builder.reasoningSeconds, 0.25);
  builder.apply(delta({ content: "7" }));
  now = 2250;
  builder.apply(delta({ content: "5" }));
  assert.ok(!builder.isReasoning);
  builder.apply(delta({}, { finish_reason: "stop" }));
  builder.apply({ choices: [], usage: { completion_tokens: 11, prompt_tokens: 8 } });
  const message = builder.message();
  assert.equal(message.content, "75");
  assert.equal(message.reasoning, "hm");
  assert.equal(message.reasoningSeconds, 0.25);
  assert.deepEqual(message.stats, {
    tokens: 11,
    exact: true,
    promptTokens: 8,
    firstSeconds: 0.25,
    perSecond: 10,
    finish: "stop",
  });
  assert.equal(
    statsText(message.stats),
    "10.0 tokens/s · first token after 250 ms · 11 tokens · prompt 8",
  );
});

test("an answer that arrives at once is rated by the whole time", () => {
  let now = 0;
  const builder = new AnswerBuilder(() => now);
  now = 500;
  builder.apply(delta({ content: "a" }));
  now = 500.1;
  builder.apply(delta({ content: "b" }));
  builder.apply({ choices: [], usage: { completion_tokens: 50, prompt_tokens: 8 } });
  assert.equal(Math.round(builder.message().stats.perSecond), 100);
  const single = new AnswerBuilder(() => now);
  single.apply(delta({ content: "a" }));
  assert.equal(single.message().stats.perSecond, null);
});

test("the calls of tools grow by index", () => {
  const builder = new AnswerBuilder(() => 0);
  const call = (index, fields) => delta({ tool_calls: [{ index, ...fields }] });
  builder.apply(call(0, { id: "a", type: "function", function: { name: "f", arguments: "" } }));
  builder.apply(call(0, { function: { arguments: '{"x"' } }));
  builder.apply(call(1, { id: "b", type: "function", function: { name: "g", arguments: "{}" } }));
  builder.apply(call(0, { function: { arguments: ":1}" } }));
  assert.deepEqual(builder.message().toolCalls, [
    { id: "a", name: "f", arguments: '{"x":1}' },
    { id: "b", name: "g", arguments: "{}" },
  ]);
});

test("a stopped answer counts what came", () => {
  let now = 0;
  const builder = new AnswerBuilder(() => now);
  for (const word of ["a", "b", "c"]) {
    now += 500;
    builder.apply(delta({ content: word }));
  }
  assert.equal(
    statsText({ ...builder.message().stats, stopped: true }),
    "2.0 tokens/s · first token after 500 ms · about 3 tokens · stopped by you",
  );
});

test("screen readers get whole sentences, and all of them", () => {
  const text = "One. Two is 2.5 long! And\nlast";
  let from = 0;
  const said = [];
  for (let end = 1; end <= text.length; end++) {
    const [part, next] = wholeSentences(text.slice(0, end), from, end === text.length);
    if (part !== "") said.push(part);
    from = next;
  }
  assert.deepEqual(said, ["One.", " Two is 2.5 long!", " And\n", "last"]);
});

test("settings make a request, and say what is wrong with them", () => {
  assert.deepEqual(requestFields(EMPTY_SETTINGS), { fields: {}, problems: {} });
  const good = {
    ...EMPTY_SETTINGS,
    temperature: "0",
    top_p: "0.9",
    top_k: "40",
    min_p: ".05",
    max_tokens: "12",
    seed: "7",
    stop: "END\n\\n\\n\na\\\\n",
    tools: EXAMPLE_TOOLS,
    tool_choice: "required",
  };
  assert.deepEqual(requestFields(good), {
    fields: {
      temperature: 0,
      top_p: 0.9,
      top_k: 40,
      min_p: 0.05,
      max_tokens: 12,
      seed: 7,
      stop: ["END", "\n\n", "a\\n"],
      tools: JSON.parse(EXAMPLE_TOOLS),
      tool_choice: "required",
    },
    problems: {},
  });
  const bad = {
    ...EMPTY_SETTINGS,
    temperature: "warm",
    top_p: "1.1",
    top_k: "1.5",
    max_tokens: "0",
    seed: "-1",
    tools: "{}",
  };
  const { fields, problems } = requestFields(bad);
  assert.deepEqual(fields, {});
  assert.deepEqual(Object.keys(problems).sort(), [
    "max_tokens",
    "seed",
    "temperature",
    "tools",
    "top_k",
    "top_p",
  ]);
  assert.equal(problems.top_p, "top_p must be a number from 0 to 1.");
  assert.equal(problems.tools, "The tools must be a list in JSON: it is no list.");
  assert.deepEqual(parseStops(""), []);
});

const call = { id: "c1", name: "f", arguments: "{}" };

test("messages of the API", () => {
  const chat = newConversation("1", { ...EMPTY_SETTINGS, system: "Be kind." });
  chat.messages = [
    { role: "user", content: "hi" },
    { role: "assistant", content: "", failure: { message: "x", retryable: true } },
    { role: "user", content: "again" },
    { role: "assistant", content: "", reasoning: "use f", toolCalls: [call] },
    { role: "tool", toolCallId: "c1", name: "f", content: "3" },
  ];
  assert.deepEqual(messagesForApi(chat), [
    { role: "system", content: "Be kind." },
    { role: "user", content: "hi" },
    { role: "user", content: "again" },
    {
      role: "assistant",
      content: "",
      reasoning_content: "use f",
      tool_calls: [{ id: "c1", type: "function", function: { name: "f", arguments: "{}" } }],
    },
    { role: "tool", tool_call_id: "c1", content: "3" },
  ]);
  assert.deepEqual(openToolCalls(chat), []);
  chat.messages.pop();
  assert.deepEqual(openToolCalls(chat), [call]);
  assert.equal(titleOf(chat), "hi");
  assert.equal(titleOf(newConversation("2")), "New chat");
});

test("an export comes back the same; anything else is refused in words", () => {
  const chat = newConversation("1", { ...EMPTY_SETTINGS, seed: "4" });
  chat.messages = [
    { role: "user", content: "hi" },
    {
      role: "assistant",
      content: "x",
      reasoning: "r",
      reasoningSeconds: 2,
      toolCalls: [call],
      stats: {
        tokens: 1,
        exact: true,
        promptTokens: 2,
        firstSeconds: 0.1,
        perSecond: null,
        finish: "stop",
        stopped: false,
      },
    },
    { role: "tool", toolCallId: "c1", name: "f", content: "3" },
  ];
  const [back] = importText(exportText([chat]), () => "9");
  assert.deepEqual(back, { ...chat, id: "9" });
  for (const [text, words] of [
    ["{", /no JSON/],
    ["[]", /no export/],
    ['{"weir_chats":1}', /no export/],
    ['{"weir_chats":1,"conversations":[null]}', /no list of messages/],
    [
      '{"weir_chats":1,"conversations":[{"messages":[{"role":"root","content":"x"}]}]}',
      /"root" is no role/,
    ],
    ['{"weir_chats":1,"conversations":[{"messages":[{"role":"user","content":3}]}]}', /no text/],
  ]) {
    assert.throws(() => importText(text, () => "9"), words, text);
  }
});

test("what is not ours does not get in", () => {
  const chat = checkConversation(
    {
      id: "evil",
      extra: 1,
      settings: { seed: 3, system: "s", tool_choice: "x" },
      messages: [
        { role: "assistant", content: "a", html: "<b>", stats: { tokens: "x" }, toolCalls: [null] },
      ],
    },
    "7",
  );
  assert.deepEqual(chat, {
    id: "7",
    title: "",
    settings: { ...EMPTY_SETTINGS, system: "s" },
    messages: [
      {
        role: "assistant",
        content: "a",
        toolCalls: [{ id: "", name: "", arguments: "" }],
        stats: {
          tokens: 0,
          exact: false,
          promptTokens: null,
          firstSeconds: null,
          perSecond: null,
          finish: null,
          stopped: false,
        },
      },
    ],
  });
});

class FakeStorage {
  #held = new Map();
  full = false;
  get length() {
    return this.#held.size;
  }
  key = (at) => [...this.#held.keys()][at];
  getItem = (name) => this.#held.get(name) ?? null;
  removeItem = (name) => this.#held.delete(name);
  setItem(name, value) {
    if (this.full) throw new Error("quota");
    this.#held.set(name, value);
  }
}

test("chats are kept, the newest first; what is broken is passed over", () => {
  const storage = new FakeStorage();
  const store = new Store(storage);
  storage.setItem("other", "x");
  storage.setItem("weir.chat.broken", "{");
  assert.ok(store.save(newConversation("001")));
  assert.ok(store.save(newConversation("002")));
  assert.deepEqual(
    store.all().map((chat) => chat.id),
    ["002", "001"],
  );
  store.remove("002");
  assert.deepEqual(
    store.all().map((chat) => chat.id),
    ["001"],
  );
  storage.full = true;
  assert.equal(store.save(newConversation("003")), false);
});

test("refusals in words", () => {
  const body = (message, param = null) =>
    JSON.stringify({ error: { message, type: "t", param, code: "c" } });
  const words = (status, text, retryAfter) => failureFrom(status, text, retryAfter).message;
  assert.equal(
    words(400, body("temperature must be at most 2", "temperature")),
    "The server refuses this request. temperature must be at most 2.",
  );
  assert.equal(
    words(400, body("it is too long", "messages")),
    "The server refuses this request. it is too long. (field: messages)",
  );
  assert.equal(
    words(429, body("the queue is full"), "3"),
    "The server has too much to do. the queue is full. Try again in 3 s.",
  );
  assert.equal(words(503, body("draining"), null), "The server takes no requests now. draining.");
  assert.equal(
    words(502, "<html>a proxy's page</html>".repeat(20), null),
    "The server failed (502).",
  );
  assert.equal(words(418, "", null), "The server refuses this request. Status 418.");
  assert.ok(failureFrom(401, body("no"), null).needsKey);
  assert.ok(!failureFrom(400, body("no"), null).retryable);
  assert.ok(failureFrom(503, "", null).retryable);
});
