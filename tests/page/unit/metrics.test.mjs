import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { format, niceTop, pathOf } from "../../../gateway/page/chart.js";
import {
  bucketsBetween,
  increase,
  meanBetween,
  parseMetrics,
  quantile,
  sum,
} from "../../../gateway/page/metrics.js";

const TEXT = `# HELP a_total things
# TYPE a_total counter
a_total 3
b{x="1",y="two words"} 4.5e+01
b{x="2",y="q\\"uote, comma} and \\\\ and \\n"} 5 1700000000000
c{} 1
d{le="+Inf",} +Inf
neg -Inf
nan NaN

not a line
{x="1"} 3
e{x="1" 3
f
`;

test("the text format", () => {
  const families = parseMetrics(TEXT);
  assert.deepEqual([...families.keys()], ["a_total", "b", "c", "d", "neg"]);
  assert.deepEqual(families.get("a_total"), [{ labels: {}, value: 3 }]);
  assert.deepEqual(families.get("b"), [
    { labels: { x: "1", y: "two words" }, value: 45 },
    { labels: { x: "2", y: 'q"uote, comma} and \\ and \n' }, value: 5 },
  ]);
  assert.deepEqual(families.get("d"), [{ labels: { le: "+Inf" }, value: Infinity }]);
  assert.equal(families.get("neg")[0].value, -Infinity);
});

test("sums choose by label, and what is not there is null", () => {
  const families = parseMetrics(TEXT);
  assert.equal(sum(families, "b"), 50);
  assert.equal(sum(families, "b", { x: "2" }), 5);
  assert.equal(sum(families, "b", { x: "3" }), null);
  assert.equal(sum(families, "b", { y: /^two/ }), 45);
  assert.equal(sum(families, "b", { z: /./ }), null);
  assert.equal(sum(families, "zzz"), null);
});

test("counters grow, and begin anew with their process", () => {
  const at = (value) => parseMetrics(`a ${value}`);
  assert.equal(increase(at(3), at(10), "a"), 7);
  assert.equal(increase(at(10), at(2), "a"), 2);
  assert.equal(increase(parseMetrics(""), at(2), "a"), 2);
  assert.equal(increase(at(2), parseMetrics(""), "a"), null);
});

const histogram = (counts, total) =>
  parseMetrics(
    ["0.1", "0.2", "0.5", "+Inf"]
      .map((le, index) => `h_bucket{kind="k",le="${le}"} ${counts[index]}`)
      .join("\n") + `\nh_sum{kind="k"} ${total}\nh_count{kind="k"} ${counts[3]}`,
  );

test("quantiles of what came between two readings", () => {
  const before = histogram([10, 10, 10, 10], 0.5);
  const now = histogram([10, 30, 40, 40], 6.5);
  const buckets = bucketsBetween(before, now, "h");
  assert.deepEqual(buckets, [
    { le: 0.1, count: 0 },
    { le: 0.2, count: 20 },
    { le: 0.5, count: 30 },
    { le: Infinity, count: 30 },
  ]);
  assert.ok(Math.abs(quantile(0.5, buckets) - 0.175) < 1e-12);
  assert.ok(Math.abs(quantile(0.9, buckets) - 0.41) < 1e-12);
  assert.equal(quantile(1, buckets), 0.5);
  assert.ok(Math.abs(meanBetween(before, now, "h") - 0.2) < 1e-12);
  assert.equal(meanBetween(before, now, "h", { kind: "other" }), null);
});

test("quantiles at the edges", () => {
  const empty = histogram([0, 0, 0, 0], 0);
  assert.equal(quantile(0.5, bucketsBetween(empty, empty, "h")), null);
  assert.equal(quantile(0.5, bucketsBetween(empty, empty, "zzz")), null);
  assert.equal(quantile(0.5, bucketsBetween(empty, histogram([4, 4, 4, 4], 0.2), "h")), 0.05);
  assert.equal(quantile(0.99, bucketsBetween(empty, histogram([0, 0, 0, 5], 5), "h")), 0.5); // past the last bound
});

test("histograms of several series are added up", () => {
  const families = parseMetrics(
    'h_bucket{k="a",le="1"} 2\nh_bucket{k="a",le="+Inf"} 2\nh_bucket{k="b",le="1"} 0\nh_bucket{k="b",le="+Inf"} 2',
  );
  assert.deepEqual(bucketsBetween(new Map(), families, "h"), [
    { le: 1, count: 2 },
    { le: Infinity, count: 4 },
  ]);
  assert.deepEqual(bucketsBetween(new Map(), families, "h", { k: "b" }), [
    { le: 1, count: 0 },
    { le: Infinity, count: 2 },
  ]);
});

test("every family that the charts read is in docs/metrics.md", () => {
  const root = new URL("../../../", import.meta.url);
  const read = [
    ...readFileSync(new URL("gateway/page/watch.js", root), "utf8").matchAll(
      /"((?:weir|process)_[a-z_]+)"/g,
    ),
  ];
  const documented = readFileSync(new URL("docs/metrics.md", root), "utf8");
  assert.ok(read.length > 20);
  for (const [, name] of read) assert.ok(documented.includes(`\`${name}\``), name);
});

test("numbers in words", () => {
  assert.equal(format(null, "seconds"), "–");
  assert.equal(format(0, "seconds"), "0 s");
  assert.equal(format(0.00002, "seconds"), "20 µs");
  assert.equal(format(0.0123, "seconds"), "12.3 ms");
  assert.equal(format(2.5, "seconds"), "2.50 s");
  assert.equal(format(0, "bytes"), "0 B");
  assert.equal(format(1536, "bytes"), "1.50 KiB");
  assert.equal(format(152 * 2 ** 20, "bytes"), "152 MiB");
  assert.equal(format(131072, ""), "131 k");
  assert.equal(format(3, ""), "3");
  assert.equal(format(0.25, ""), "0.25");
});

test("axes end at round numbers", () => {
  assert.equal(niceTop(0, ""), 1);
  assert.equal(niceTop(0.45, ""), 0.5);
  assert.equal(niceTop(7, ""), 8);
  assert.equal(niceTop(100, ""), 100);
  assert.equal(niceTop(101, ""), 150);
  assert.equal(niceTop(5 * 2 ** 20, "bytes"), 8 * 2 ** 20);
});

test("lines have gaps where nothing was read", () => {
  const points = [
    { at: 0, value: 5 },
    { at: 50, value: 10 },
    { at: 60, value: null },
    { at: 100, value: 0 },
  ];
  assert.equal(pathOf(points, 0, 100, 10), "M0.0 50.0h.01L150.0 0.0M300.0 100.0h.01");
  assert.equal(pathOf(points, 40, 100, 10), "M50.0 0.0h.01M300.0 100.0h.01");
  assert.equal(pathOf([], 0, 100, 10), "");
});
