// The watch tab: reads /metrics once a second while it is seen and draws what it tells.

import { readMetrics } from "./api.js";
import { Chart } from "./chart.js";
import { byId } from "./dom.js";
import { bucketsBetween, increase, meanBetween, parseMetrics, quantile, sum } from "./metrics.js";

const PERIOD_MS = 1000;
const SPAN_S = 180; // what the charts show
const WINDOW_S = 10; // what latencies are taken over: in one second few requests start

// Each chart's values out of two readings a second apart (`last`, `now`), and one WINDOW_S back
// (`back`).
const perSecond =
  (name, labels) =>
  ({ last, now, seconds }) => {
    if (last === null || !now.has(name)) return null;
    return (increase(last, now, name, labels) ?? 0) / seconds; // a label that never came: none yet
  };
const level =
  (name, labels) =>
  ({ now }) =>
    sum(now, name, labels);
const total =
  (name) =>
  ({ now }) =>
    sum(now, name);
const percentile =
  (q, name, labels) =>
  ({ back, now }) =>
    back === null ? null : quantile(q, bucketsBetween(back, now, name, labels));
const mean =
  (name, labels) =>
  ({ back, now }) =>
    back === null ? null : meanBetween(back, now, name, labels);
// Bytes of a pool that are in use: its share of slots or pages.
const bytesUsed =
  (kind, pool) =>
  ({ now }) => {
    const used = sum(now, pool, { state: "used" });
    const all = sum(now, pool);
    return used === null || !all ? null : (sum(now, "weir_memory_bytes", { kind }) * used) / all;
  };
const times = (q, name) => [{ label: `p${q * 100}`, of: percentile(q, name) }];

export const CHARTS = [
  {
    title: "Tokens a second",
    unit: "",
    series: [
      { label: "generated", of: perSecond("weir_decode_tokens_total") },
      { label: "prompt", of: perSecond("weir_prefill_tokens_total") },
    ],
  },
  {
    title: "Requests",
    unit: "",
    series: [
      { label: "running", of: level("weir_running_requests") },
      { label: "waiting", of: level("weir_queue_requests") },
      { label: "choices", of: level("weir_running_sequences") },
    ],
  },
  {
    title: "Time to first token",
    unit: "seconds",
    series: [
      ...times(0.5, "weir_time_to_first_token_seconds"),
      ...times(0.99, "weir_time_to_first_token_seconds"),
    ],
  },
  {
    title: "Between two tokens",
    unit: "seconds",
    series: [...times(0.5, "weir_inter_token_seconds"), ...times(0.99, "weir_inter_token_seconds")],
  },
  {
    title: "Sequences in a step",
    unit: "",
    series: [
      { label: "mean", of: mean("weir_step_sequences") },
      { label: "p99", of: percentile(0.99, "weir_step_sequences") },
    ],
  },
  {
    title: "Tokens in a step",
    unit: "",
    series: [
      { label: "mean", of: mean("weir_step_tokens") },
      { label: "p99", of: percentile(0.99, "weir_step_tokens") },
    ],
  },
  {
    title: "Step time by phase",
    unit: "seconds",
    series: [
      { label: "plan", of: mean("weir_step_seconds", { phase: "plan" }) },
      { label: "execute", of: mean("weir_step_seconds", { phase: "execute" }) },
      { label: "commit", of: mean("weir_step_seconds", { phase: "commit" }) },
    ],
  },
  {
    title: "Slots",
    unit: "",
    series: [
      { label: "used", of: level("weir_slots", { state: "used" }) },
      { label: "of", of: total("weir_slots"), line: false },
    ],
  },
  {
    title: "Pages",
    unit: "",
    series: [
      { label: "used", of: level("weir_pages", { state: "used" }) },
      { label: "of", of: total("weir_pages"), line: false },
    ],
  },
  {
    title: "Bytes in use",
    unit: "bytes",
    series: [
      { label: "state", of: bytesUsed("state", "weir_slots") },
      { label: "KV", of: bytesUsed("kv", "weir_pages") },
    ],
  },
  {
    title: "Queue",
    unit: "",
    series: [
      { label: "tokens", of: level("weir_queue_tokens") },
      { label: "open streams", of: level("weir_open_streams") },
    ],
  },
  {
    title: "Wait in the queue",
    unit: "seconds",
    series: [...times(0.5, "weir_queue_wait_seconds"), ...times(0.99, "weir_queue_wait_seconds")],
  },
  {
    title: "Ended otherwise, a second",
    unit: "",
    series: [
      { label: "refused", of: perSecond("weir_requests_rejected_total") },
      { label: "cancelled", of: perSecond("weir_requests_total", { outcome: "cancelled" }) },
      { label: "deadline", of: perSecond("weir_requests_total", { outcome: "deadline" }) },
      { label: "slow reader", of: perSecond("weir_requests_total", { outcome: "slow_reader" }) },
      { label: "failed", of: perSecond("weir_requests_total", { outcome: "error" }) },
    ],
  },
  {
    title: "HTTP answers a second",
    unit: "",
    series: [
      {
        label: "done",
        of: perSecond("weir_http_requests_total", { path: /^\/v1/, status: /^[123]/ }),
      },
      { label: "refused (4xx)", of: perSecond("weir_http_requests_total", { status: /^4/ }) },
      { label: "failed (5xx)", of: perSecond("weir_http_requests_total", { status: /^5/ }) },
    ],
  },
  {
    title: "HTTP connections",
    unit: "",
    series: [
      { label: "open", of: level("weir_http_connections") },
      { label: "requests in flight", of: level("weir_http_requests_in_flight") },
    ],
  },
  {
    title: "First token over HTTP",
    unit: "seconds",
    series: [
      ...times(0.5, "weir_http_time_to_first_token_seconds"),
      ...times(0.99, "weir_http_time_to_first_token_seconds"),
    ],
  },
  {
    title: "Process",
    unit: "",
    series: [{ label: "CPU cores", of: perSecond("process_cpu_seconds_total") }],
  },
  {
    title: "Resident memory",
    unit: "bytes",
    series: [{ label: "resident", of: level("process_resident_memory_bytes") }],
  },
];

export class Watch {
  #shown = false;
  #timer = null;
  #abort = null;
  #readings = []; // {at: seconds, families}, of the last WINDOW_S
  #rows = []; // {at, values: [per chart [per series]]}, of the last SPAN_S
  #charts = CHARTS.map((spec) => new Chart(spec));

  constructor() {
    byId("charts").append(...this.#charts.map((chart) => chart.figure));
  }

  set shown(shown) {
    this.#shown = shown;
    this.wake();
  }

  // Reads while the tab is chosen and the page is seen; called when either changes.
  wake() {
    clearTimeout(this.#timer);
    this.#timer = null;
    if (this.#shown && !document.hidden) {
      if (this.#abort === null) this.#tick();
    } else {
      this.#abort?.abort();
      this.#readings = []; // rates over a pause would not be of one second
    }
  }

  async #tick() {
    const began = performance.now();
    const abort = new AbortController();
    this.#abort = abort;
    const timeout = setTimeout(() => abort.abort(), 5 * PERIOD_MS);
    const place = byId("watch-state");
    let words = "";
    try {
      const text = await readMetrics(byId("key").value.trim(), abort.signal);
      this.#take(parseMetrics(text), performance.now() / 1000);
      words = this.#hasServer()
        ? ""
        : "This is a gateway: it shows what passes through it. Its servers have the rest.";
    } catch (error) {
      words = error.name === "AbortError" ? "The server does not answer." : error.message;
      this.#readings = [];
      this.#push(
        performance.now() / 1000,
        this.#charts.map((_, at) => CHARTS[at].series.map(() => null)),
      );
    } finally {
      clearTimeout(timeout);
      this.#abort = null;
    }
    if (!this.#shown || document.hidden) return;
    place.classList.toggle("bad", words !== "" && this.#readings.length === 0);
    const line =
      words === ""
        ? `Read every second; percentiles and means are of the last ${WINDOW_S} s.`
        : words;
    if (place.textContent !== line) place.textContent = line;
    this.#draw();
    this.#timer = setTimeout(
      () => this.#tick(),
      Math.max(50, PERIOD_MS - (performance.now() - began)),
    );
  }

  #hasServer() {
    return (
      this.#readings.at(-1)?.families.has("weir_steps_total") ||
      this.#readings.at(-1)?.families.has("weir_slots")
    );
  }

  #take(now, at) {
    const last = this.#readings.at(-1) ?? null;
    const values = CHARTS.map(({ series }) =>
      series.map(({ of }) =>
        of({
          last: last?.families ?? null,
          back: this.#readings[0]?.families ?? null,
          now,
          seconds: last === null ? 1 : at - last.at,
        }),
      ),
    );
    this.#readings.push({ at, families: now });
    while (this.#readings.length > 1 && this.#readings[0].at < at - WINDOW_S)
      this.#readings.shift();
    this.#push(at, values);
  }

  #push(at, values) {
    this.#rows.push({ at, values });
    while (this.#rows[0].at < at - SPAN_S) this.#rows.shift();
  }

  #draw() {
    const end = this.#rows.at(-1).at;
    this.#charts.forEach((chart, index) => {
      chart.draw(
        this.#rows.map(({ at, values }) => ({ at, values: values[index] })),
        end - SPAN_S,
        end,
      );
    });
  }
}
