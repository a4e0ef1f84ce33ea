#!/usr/bin/env python3
"""Draws the panels of Grafana's dashboard from real data: a loaded server, a real Prometheus, the dashboard's own
queries, laid out as the dashboard lays them out. For docs/images. Needs Debian's prometheus, and matplotlib beside
what tools/requirements-test.txt names.

Usage: PYTHONPATH=tests/deploy render_dashboard.py BUILD_FOLDER OUT_FOLDER [--seconds 60]
"""

import argparse
import json
import math
import pathlib

import live
import matplotlib
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

# File name -> titles of the dashboard's rows.
IMAGES = {
    "dashboard-latency": ["Now", "Latency", "Throughput"],
    "dashboard-scheduler": ["Scheduler", "Step time"],
    "dashboard-errors": ["Memory", "Errors"],
    "dashboard-http": ["HTTP door", "Text and process"],
}
COLORS = ["#7eb26d", "#eab839", "#6ed0e0", "#ef843c", "#e24d42", "#1f78c1", "#ba43a9", "#705da0", "#508642"]
BACKGROUND, PANEL, TEXT, GRID = "#111217", "#181b1f", "#ccccdc", "#2c3235"
# Every colour that is drawn, and what lies between it and the panel where lines have soft edges.
PALETTE = Image.new("P", (1, 1))


def mixed(color: str, share: float) -> list[int]:
    return [round(share * a + (1 - share) * b) for a, b in zip(bytes.fromhex(color[1:]), bytes.fromhex(PANEL[1:]))]


PALETTE.putpalette([*bytes.fromhex(BACKGROUND[1:])] + sum(
    (mixed(color, share) for color in [*COLORS, TEXT, GRID, "#73bf69"] for share in (1, 0.66, 0.33)), mixed(PANEL, 1)))
SCALES = {
    "s": [(1, "s"), (1e-3, "ms"), (1e-6, "µs")],
    "bytes": [(2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B")],
    "percentunit": [(0.01, "%")],
    "Bps": [(1e6, "MB/s"), (1e3, "kB/s"), (1, "B/s")],
    "reqps": [(1, "req/s")],
    "ops": [(1, "ops/s")],
    "short": [(1e6, "M"), (1e3, "k"), (1, "")],
}


def scale_of(value: float, unit: str) -> tuple[float, str]:
    scales = SCALES.get(unit, [(1, "")])
    return next((scale for scale in scales if abs(value) >= scale[0]), scales[-1])


def show(value: float, unit: str) -> str:
    if unit == "dateTimeFromNow":
        return "a minute ago" if abs(value / 1000 - show.now) < 120 else "a while ago"
    factor, name = scale_of(value, unit)
    if value == 0:
        return "0"
    text = f"{value / factor:.3g}" if abs(value / factor) < 1000 else f"{value / factor:.0f}"
    return f"{text} {name}".strip()


def legend_of(target: dict, metric: dict) -> str:
    text = target["legendFormat"]
    if text == "__auto":
        return ""
    for key, value in metric.items():
        text = text.replace("{{" + key + "}}", value)
    return text


def draw_panel(axes, panel: dict, prometheus: live.Prometheus, begin: float, end: float) -> None:
    unit = panel["fieldConfig"]["defaults"]["unit"]
    axes.set_facecolor(PANEL)
    axes.set_title(panel["title"], color=TEXT, fontsize=8, loc="left", pad=4)
    for side in axes.spines.values():
        side.set_color(GRID)
    lines = []
    for target in panel["targets"]:
        for series in prometheus.query_range(live.fill(target["expr"]), begin, end):
            points = [(float(t) - begin, float(v)) for t, v in series["values"] if math.isfinite(float(v))]
            if points:
                lines.append((legend_of(target, series["metric"]), points))
    if panel["type"] == "stat":
        lines = [(legend, [point for point in points if point[0] < 0.5 * (end - begin)]) for legend, points in lines]
        axes.set_xticks([])
        axes.set_yticks([])
        by_name = panel["options"]["textMode"] == "name"  # as things stood in the middle of the load
        text = lines[-1][0] if by_name else show(lines[-1][1][-1][1], unit)
        axes.text(0.5, 0.5, text, color="#73bf69", fontsize=9 if by_name else 13, ha="center", va="center", transform=axes.transAxes)
        return
    # One unit for the whole axis, so that its ticks are round.
    most = max((value for _, points in lines for _, value in points), default=0)
    factor, name = scale_of(most, unit)
    for (legend, points), color in zip(lines, COLORS * 3):
        axes.plot([t for t, _ in points], [v / factor for _, v in points], color=color, linewidth=0.9, label=legend)
    axes.set_ylim(0, 1.08 * most / factor or 1)
    axes.set_xlim(0, end - begin)
    axes.tick_params(colors=TEXT, labelsize=6, length=2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} {name}".strip() if value else "0")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f} s")
    axes.grid(color=GRID, linewidth=0.5)
    if any(legend for legend, _ in lines):
        longest = max(len(legend) for legend, _ in lines)
        columns = max(1, min(len(lines), int(panel["gridPos"]["w"] * 7 / (longest + 6))))
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncol=columns, fontsize=5.5, frameon=False,
                    labelcolor=TEXT, handlelength=1, columnspacing=1)


def draw_image(file: pathlib.Path, titles: list[str], panels: list[dict], prometheus, begin: float, end: float) -> None:
    row, chosen = "", []
    for panel in panels:
        if panel["type"] == "row":
            row = panel["title"]
        elif row in titles:
            chosen.append(panel)
    top = min(p["gridPos"]["y"] for p in chosen)
    height = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in chosen) - top
    figure = plt.figure(figsize=(11, height * 0.235), dpi=100, facecolor=BACKGROUND)
    for panel in chosen:
        g = panel["gridPos"]
        small = panel["type"] == "stat"
        # Room for the axis on the left and for the legend below.
        x, w = (g["x"] + (0.2 if small else 1.05)) / 24, (g["w"] - (0.4 if small else 1.3)) / 24
        below, above = (0.4, 1.0) if small else (2.4, 1.0)
        y = 1 - (g["y"] - top + g["h"] - below) / height
        draw_panel(figure.add_axes((x, y, w, (g["h"] - below - above) / height)), panel, prometheus, begin, end)
    figure.savefig(file, facecolor=BACKGROUND)
    plt.close(figure)
    Image.open(file).convert("RGB").quantize(palette=PALETTE, dither=Image.Dither.NONE).save(file, optimize=True)
    print(f"{file}: {file.stat().st_size / 1000:.1f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--seconds", type=float, default=60)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    panels = json.loads((live.ROOT / "deploy/grafana/weir.json").read_text())["panels"]
    with live.loaded_server(arguments.build, arguments.seconds) as (prometheus, _, begin, end):
        show.now = end
        begin = float(prometheus.query_range('weir_build_info', begin, end)[0]["values"][0][0]) + 2
        for name, titles in IMAGES.items():
            draw_image(arguments.out / f"{name}.png", titles, panels, prometheus, begin, end)


if __name__ == "__main__":
    main()
