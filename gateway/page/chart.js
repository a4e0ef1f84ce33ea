// A small line chart of the last minutes: a figure with a legend of the present values, lines in
// SVG.

import { element } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 300;
const HEIGHT = 100;

function svgElement(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// A round number that is not far above `value`: a power of two for bytes.
export function niceTop(value, unit) {
  if (!(value > 0)) return 1;
  if (unit === "bytes") return 2 ** Math.ceil(Math.log2(value));
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10]
    .map((step) => step * power)
    .find((top) => top >= value * (1 - 1e-9));
}

const digits = (value) =>
  value >= 100 || Number.isInteger(value)
    ? value.toFixed(0)
    : value >= 10
      ? value.toFixed(1)
      : value.toFixed(2);

export function format(value, unit) {
  if (value === null || value === undefined) return "–";
  if (unit === "seconds") {
    if (value === 0) return "0 s";
    if (value < 1e-3) return `${digits(value * 1e6)} µs`;
    return value < 1 ? `${digits(value * 1e3)} ms` : `${digits(value)} s`;
  }
  if (unit === "bytes") {
    const steps = ["B", "KiB", "MiB", "GiB", "TiB"];
    const step = value < 1 ? 0 : Math.min(steps.length - 1, Math.floor(Math.log2(value) / 10));
    return `${digits(value / 1024 ** step)} ${steps[step]}`;
  }
  if (value >= 1e6) return `${digits(value / 1e6)} M`;
  return value >= 1e4 ? `${digits(value / 1e3)} k` : digits(value);
}

// The lines of one series: points [{at, value}], in seconds; a value that is null leaves a gap.
export function pathOf(points, start, end, top) {
  let path = "";
  let drawing = false;
  for (const { at, value } of points) {
    if (value === null || value === undefined || at < start) {
      drawing = false;
      continue;
    }
    const x = ((at - start) / (end - start)) * WIDTH;
    const y = HEIGHT - (Math.min(value, top) / top) * HEIGHT;
    path += `${drawing ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
    if (!drawing) path += "h.01"; // a lone point is a dot
    drawing = true;
  }
  return path;
}

export class Chart {
  #spec;
  #values = [];
  #lines = [];
  #top = element("span", { class: "top" });
  #plot;
  figure;

  // spec: {title, unit, series: [{label, line}]}; a series whose `line` is false is told by its
  // number alone.
  constructor(spec) {
    this.#spec = spec;
    const legend = element("ul");
    this.#plot = svgElement("svg", {
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
      preserveAspectRatio: "none",
      "aria-hidden": "true",
    });
    for (const y of [1, HEIGHT / 2, HEIGHT - 1]) {
      this.#plot.append(svgElement("line", { class: "gridline", x1: 0, x2: WIDTH, y1: y, y2: y }));
    }
    spec.series.forEach(({ label, line: drawn = true }, index) => {
      // Told apart by their dashes too, not by colour alone.
      const look = `series c${index + 1} dash${index + 1}`;
      const value = element("b", {}, "–");
      this.#values.push(value);
      this.#lines.push(drawn ? svgElement("path", { class: look, d: "" }) : null);
      if (!drawn) {
        legend.append(element("li", {}, `${label} `, value));
        return;
      }
      const key = svgElement("svg", { viewBox: "0 0 12 10", "aria-hidden": "true" });
      key.append(svgElement("path", { class: look, d: "M0 5H12" }));
      legend.append(element("li", {}, key, `${label} `, value));
      this.#plot.append(this.#lines[index]);
    });
    const id = `chart-${spec.title.toLowerCase().replace(/[^a-z]+/g, "-")}`;
    this.figure = element(
      "figure",
      { "aria-labelledby": id },
      element("figcaption", {}, element("h2", { id }, spec.title), legend),
      element("div", { class: "plot" }, this.#plot, this.#top),
      element(
        "div",
        { class: "axis", "aria-hidden": "true" },
        element("span", {}, "3 min ago"),
        element("span", {}, "now"),
      ),
    );
  }

  // rows: [{at, values: [per series]}], oldest first.
  draw(rows, start, end) {
    const seen = rows.flatMap(({ values }) =>
      values.filter((value, index) => value !== null && this.#lines[index] !== null),
    );
    const highest = Math.max(0, ...seen);
    const top = niceTop(highest, this.#spec.unit);
    this.#top.textContent = format(top, this.#spec.unit);
    this.#spec.series.forEach((_, index) => {
      this.#values[index].textContent = format(rows.at(-1)?.values[index] ?? null, this.#spec.unit);
      const points = rows.map(({ at, values }) => ({ at, value: values[index] }));
      this.#lines[index]?.setAttribute("d", pathOf(points, start, end, top));
    });
  }
}
