import assert from "node:assert/strict";
import { test } from "node:test";

import { SseParser } from "../../../gateway/page/sse.js";

const bytes = (text) => new TextEncoder().encode(text);

function parse(pieces) {
  const parser = new SseParser();
  return pieces.flatMap((piece) => parser.push(piece));
}

// Every way to cut `whole` in two and, for short ones, in three; and byte by byte.
function* cuts(whole) {
  for (let a = 0; a <= whole.length; a++) {
    yield [whole.slice(0, a), whole.slice(a)];
    if (whole.length > 90) continue;
    for (let b = a; b <= whole.length; b++)
      yield [whole.slice(0, a), whole.slice(a, b), whole.slice(b)];
  }
  yield [...whole].map((byte) => Uint8Array.of(byte));
}

const STREAMS = [
  ["one event", "data: a\n\n", [["message", "a"]]],
  [
    "two events",
    "data: a\n\ndata: b\n\n",
    [
      ["message", "a"],
      ["message", "b"],
    ],
  ],
  [
    "carriage returns",
    "data: a\r\n\r\ndata: b\r\rdata: c\n\n",
    [
      ["message", "a"],
      ["message", "b"],
      ["message", "c"],
    ],
  ],
  [
    "mixed ends of lines",
    "data: a\r\n\ndata: b\n\r\ndata: c\r\n\r",
    [
      ["message", "a"],
      ["message", "b"],
      ["message", "c"],
    ],
  ],
  ["characters of 2, 3 and 4 bytes", "data: é 中 🌊\n\n", [["message", "é 中 🌊"]]],
  ["a byte order mark", "\ufeffdata: a\n\n", [["message", "a"]]],
  ["comments", ": waiting\n\n:\ndata: a\n: x\n\n", [["message", "a"]]],
  ["lines joined", "data: a\ndata:b\ndata\n\n", [["message", "a\nb\n"]]],
  ["only one space goes", "data:  a\n\n", [["message", " a"]]],
  [
    "types",
    "event: error\ndata: a\n\ndata: b\n\n",
    [
      ["error", "a"],
      ["message", "b"],
    ],
  ],
  ["other fields, no data", "id: 3\nretry: 10\nevent: x\n\ndata: a\n\n", [["message", "a"]]],
  ["an end without its empty line", "data: a\n\ndata: b\n", [["message", "a"]]],
  [
    "JSON with colons",
    'data: {"a": "b: c"}\n\ndata: [DONE]\n\n',
    [
      ["message", '{"a": "b: c"}'],
      ["message", "[DONE]"],
    ],
  ],
];

for (const [name, text, events] of STREAMS) {
  test(`SSE, however it is cut: ${name}`, () => {
    const expected = events.map(([type, data]) => ({ type, data }));
    for (const pieces of cuts(bytes(text))) {
      assert.deepEqual(parse(pieces), expected, JSON.stringify(pieces.map((piece) => [...piece])));
    }
  });
}
