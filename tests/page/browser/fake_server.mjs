// A server that serves the page as the gateway does and answers as the user's message asks it to:
// what a real model cannot be made to do at will (refusals, broken streams, hostile text, odd cuts
// of bytes).

import { readFileSync } from "node:fs";
import { createServer } from "node:http";

const PAGE = new URL("../../../gateway/page/", import.meta.url);
const TYPES = {
  html: "text/html; charset=utf-8",
  css: "text/css",
  js: "text/javascript",
  svg: "image/svg+xml",
};
export const CSP =
  "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; " +
  "base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

export const HOSTILE = [
  "<script>window.hacked = 1</script>",
  '<img src=x onerror="window.hacked = 2">',
  "[click](javascript:window.hacked=3)",
  "[rel](/page/app.js)",
  "![t](https://tracker.example/p.png)",
  '<svg onload="window.hacked = 4">',
  '```html" onmouseover="window.hacked=5\n<b>code</b>\n```',
  '| <iframe src="javascript:window.hacked=6"> | b |\n|---|---|\n| [x](data:text/html,<script>1</script>) | c |',
  "[fine](https://example.org/a?b=c)",
  "<style>body { display: none }</style>",
].join("\n\n");

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function metrics(readings) {
  const grown = readings * 40;
  const buckets = (name, sum, labels = "") =>
    ["0.01", "0.1", "1", "+Inf"]
      .map(
        (le, index) =>
          `${name}_bucket{${labels}le="${le}"} ${grown * Math.min(1, (index + 1) / 3)}`,
      )
      .concat(`${name}_sum{${labels}} ${sum}`, `${name}_count{${labels}} ${grown}`);
  return [
    `weir_decode_tokens_total ${grown}`,
    `weir_prefill_tokens_total ${grown * 3}`,
    "weir_running_requests 3",
    "weir_queue_requests 1",
    "weir_running_sequences 4",
    'weir_slots{state="used"} 4',
    'weir_slots{state="free"} 252',
    'weir_pages{state="used"} 100',
    'weir_pages{state="free"} 900',
    'weir_memory_bytes{kind="state"} 159383552',
    'weir_memory_bytes{kind="kv"} 536870912',
    "weir_queue_tokens 12",
    "weir_open_streams 4",
    'weir_steps_total{kind="decode"} 5',
    ...buckets("weir_time_to_first_token_seconds", grown * 0.05),
    ...buckets("weir_inter_token_seconds", grown * 0.02),
    ...buckets("weir_step_sequences", grown * 4),
    ...buckets("weir_step_tokens", grown * 9),
    ...["plan", "execute", "commit"].flatMap((phase, at) =>
      buckets("weir_step_seconds", grown * 0.001 * (at + 1), `phase="${phase}",`),
    ),
    ...buckets("weir_queue_wait_seconds", grown * 0.01),
    `process_cpu_seconds_total ${readings * 0.7}`,
    "process_resident_memory_bytes 300000000",
    "",
  ].join("\n");
}

export class FakeServer {
  requests = []; // bodies of chat completions
  readings = 0; // of /metrics
  gone = 0; // answers whose client left
  failing = 0; // how many requests to refuse before the next answer
  #server;

  async start() {
    this.#server = createServer((request, response) =>
      this.#serve(request, response).catch((error) => response.destroy(error)),
    );
    await new Promise((resolve) => this.#server.listen(0, "127.0.0.1", resolve));
    return `http://127.0.0.1:${this.#server.address().port}`;
  }

  stop() {
    this.#server.closeAllConnections();
    this.#server.close();
  }

  async #serve(request, response) {
    const path = new URL(request.url, "http://x").pathname;
    const json = (status, value, headers = {}) => {
      response.writeHead(status, { "Content-Type": "application/json", ...headers });
      response.end(JSON.stringify(value));
    };
    if (path === "/" || path.startsWith("/page/")) {
      const name = path === "/" ? "index.html" : path.slice(6);
      response.setHeader("Content-Security-Policy", CSP);
      response.setHeader("Content-Type", TYPES[name.split(".").at(-1)]);
      return response.end(readFileSync(new URL(name, PAGE)));
    }
    if (path === "/v1/models")
      return json(200, { object: "list", data: [{ id: "fake-model", object: "model" }] });
    if (path === "/metrics") return response.end(metrics(++this.readings));
    if (path !== "/v1/chat/completions") return json(404, { error: { message: "no such path" } });
    const pieces = [];
    for await (const piece of request) pieces.push(piece);
    const body = JSON.parse(Buffer.concat(pieces).toString());
    this.requests.push({ ...body, authorization: request.headers.authorization ?? null });
    return this.#chat(body, response, json, this.requests.at(-1).authorization);
  }

  async #chat(body, response, json, authorization) {
    const said = body.messages.findLast((message) => message.role === "user").content;
    const error = (message) => ({ error: { message, type: "t", param: null, code: null } });
    if (this.failing > 0) {
      this.failing--;
      return json(429, error("64 requests wait already"), { "Retry-After": "2" });
    }
    if (said === "refuse")
      return json(400, { error: { message: "top_k must be whole", param: "top_k" } });
    if (said === "key" && authorization !== "Bearer sesame") return json(401, error("no such key"));
    response.writeHead(200, { "Content-Type": "text/event-stream" });
    response.on("close", () => {
      if (!response.writableFinished) this.gone++;
    });
    const send = (value) => response.write(`data: ${JSON.stringify(value)}\n\n`);
    const delta = (fields, finish_reason = null) => ({
      choices: [{ index: 0, delta: fields, finish_reason }],
    });
    if (said === "cut" || said === "break") {
      send(delta({ content: "Half an ans" }));
      await sleep(50);
      if (said === "cut") return response.destroy();
      send(error("the model stumbled"));
      return response.end();
    }
    if (said === "slow") {
      for (let n = 0; n < 600 && !response.destroyed; n++) {
        send(delta({ content: `word${n} ` }));
        await sleep(50);
      }
      return response.end();
    }
    await this.#stream(
      said === "hostile" ? HOSTILE : `You said: **${said}**. 🌊 é`,
      response,
      delta,
    );
  }

  // Byte by byte, near enough: cuts within characters and lines.
  async #stream(text, response, delta) {
    const events = [
      ": waiting",
      ...[...text].map((character) => `data: ${JSON.stringify(delta({ content: character }))}`),
      `data: ${JSON.stringify(delta({}, "stop"))}`,
      `data: ${JSON.stringify({ choices: [], usage: { prompt_tokens: 5, completion_tokens: 42, total_tokens: 47 } })}`,
      "data: [DONE]",
    ];
    const bytes = Buffer.from(events.map((event) => `${event}\r\n\r\n`).join(""));
    for (let at = 0; at < bytes.length; at += 997) {
      response.write(bytes.subarray(at, at + 997));
      await sleep(3);
    }
    response.end();
  }
}
