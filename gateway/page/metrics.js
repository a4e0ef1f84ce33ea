// The Prometheus text format, and what can be told from two readings of it.

const LABEL = /\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*=\s*"((?:[^"\\]|\\.)*)"\s*,?/y;
const ESCAPES = { "\\n": "\n", "\\\\": "\\", '\\"': '"' };

function parseNumber(text) {
  if (text === "+Inf") return Infinity;
  if (text === "-Inf") return -Infinity;
  return text === "" ? NaN : Number(text);
}

// name -> [{labels: {name: value}, value}]. A line that is no sample is passed over.
export function parseMetrics(text) {
  const families = new Map();
  for (const line of text.split("\n")) {
    if (line === "" || line[0] === "#") continue;
    const name = /^[a-zA-Z_:][a-zA-Z0-9_:]*/.exec(line)?.[0];
    if (name === undefined) continue;
    let at = name.length;
    const labels = {};
    if (line[at] === "{") {
      LABEL.lastIndex = at + 1;
      at++;
      for (let match = LABEL.exec(line); match !== null; match = LABEL.exec(line)) {
        labels[match[1]] = match[2].replace(/\\[n\\"]/g, (escape) => ESCAPES[escape]);
        at = LABEL.lastIndex;
      }
      while (line[at] === " ") at++;
      if (line[at] !== "}") continue;
      at++;
    }
    const value = parseNumber(line.slice(at).trim().split(/\s+/)[0]); // a timestamp may follow
    if (Number.isNaN(value)) continue;
    if (!families.has(name)) families.set(name, []);
    families.get(name).push({ labels, value });
  }
  return families;
}

// `wanted`: label -> its value, or a pattern for it.
const matches = (labels, wanted) =>
  Object.entries(wanted).every(([name, value]) =>
    value instanceof RegExp ? value.test(labels[name] ?? "") : labels[name] === value,
  );

// The sum of the series with these labels; null when there is none.
export function sum(families, name, wanted = {}) {
  const series = (families.get(name) ?? []).filter((sample) => matches(sample.labels, wanted));
  return series.length === 0 ? null : series.reduce((total, sample) => total + sample.value, 0);
}

// By how much a counter grew between two readings; null when it is in neither. A counter that fell
// began anew with its process: then what it shows now is what came since.
export function increase(before, now, name, wanted = {}) {
  const later = sum(now, name, wanted);
  if (later === null) return null;
  const earlier = sum(before, name, wanted) ?? 0;
  return later >= earlier ? later - earlier : later;
}

// [{le, count}] by bound, cumulative, of what a histogram counted between two readings; null when
// it is in neither. Series that differ in other labels are added up.
export function bucketsBetween(before, now, name, wanted = {}) {
  const bounds = new Set(
    (now.get(`${name}_bucket`) ?? [])
      .filter((s) => matches(s.labels, wanted))
      .map((s) => s.labels.le),
  );
  if (bounds.size === 0) return null;
  return [...bounds]
    .map((le) => ({
      le: parseNumber(le),
      count: increase(before, now, `${name}_bucket`, { ...wanted, le }),
    }))
    .sort((a, b) => a.le - b.le);
}

// The q-quantile, between the bounds of its bucket in a straight line, as Prometheus'
// histogram_quantile has it; null when nothing was counted. In the last bucket: its lower bound.
export function quantile(q, buckets) {
  const total = buckets?.at(-1)?.count ?? 0;
  if (!(total > 0)) return null;
  const rank = q * total;
  const index = buckets.findIndex((bucket) => bucket.count >= rank);
  const bucket = buckets[index];
  const low = index === 0 ? Math.min(0, bucket.le) : buckets[index - 1].le;
  if (bucket.le === Infinity) return index === 0 ? null : low;
  const below = index === 0 ? 0 : buckets[index - 1].count;
  const inside = bucket.count - below;
  return inside > 0 ? low + ((bucket.le - low) * (rank - below)) / inside : bucket.le;
}

// The mean of what a histogram saw between two readings; null when nothing.
export function meanBetween(before, now, name, wanted = {}) {
  const count = increase(before, now, `${name}_count`, wanted);
  return count ? increase(before, now, `${name}_sum`, wanted) / count : null;
}
