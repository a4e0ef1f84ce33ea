"""Grafana's dashboard and Prometheus's rules, against a real Prometheus that scrapes a loaded server."""

import json
import math
import pathlib
import re
import shutil
import subprocess
import sys
import urllib.request

import pytest

import live

ROOT = live.ROOT
SECONDS = 9
# Queries that a healthy server on a CPU answers with nothing, and why.
MAY_BE_EMPTY = {}

needs_prometheus = pytest.mark.skipif(shutil.which("prometheus") is None,
                                      reason="no prometheus here: tools/install_dependencies.sh --test installs it")
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None,
                                    reason="no promtool here: tools/install_dependencies.sh --test installs it")


@pytest.fixture(scope="module")
def served():
    with live.loaded_server(live.build_folder(), SECONDS) as loaded:
        yield loaded


def has_number(series: list[dict]) -> bool:
    return any(math.isfinite(float(value)) for one in series for _, value in one["values"])


@needs_prometheus
def test_every_query_of_the_dashboard_has_data(served):
    prometheus, _, begin, end = served
    queries = live.dashboard_queries()
    assert len(queries) > 40
    empty = [f"{title}: {query}" for title, query, _ in queries
             if query not in MAY_BE_EMPTY and not has_number(prometheus.query_range(query, begin, end))]
    assert not empty, "no data for\n" + "\n".join(empty)


@needs_prometheus
def test_legends_name_labels_that_are_there(served):
    prometheus, _, begin, end = served
    for title, query, legend in live.dashboard_queries():
        for label in re.findall(r"{{(\w+)}}", legend):
            for series in prometheus.query_range(query, begin, end):
                assert label in series["metric"], f"{title}: no label {label} in {series['metric']}"


@needs_prometheus
def test_rules_are_evaluated_and_recorded(served):
    prometheus, _, begin, end = served
    groups = prometheus.get("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert sum(rule["type"] == "recording" for rule in rules) >= 10
    assert sum(rule["type"] == "alerting" for rule in rules) >= 10
    for rule in rules:
        assert rule["health"] == "ok", f"{rule['name']}: {rule.get('lastError')}"
        if rule["type"] == "recording":
            assert has_number(prometheus.query_range(rule["name"], begin, end)), f"{rule['name']} has no data"
    # What this load is about shows in the rules: refused requests, requests that ended at their deadline.
    refused = prometheus.get("query", query="job:weir_requests_refused:ratio_rate5m")["result"]
    assert float(refused[0]["value"][1]) > 0


@needs_prometheus
def test_every_metric_that_is_asked_for_exists(served):
    """Also in the queries of alerts, which are empty while all is well."""
    _, metrics_url, _, _ = served
    text = urllib.request.urlopen(metrics_url, timeout=5).read().decode()
    exported = set(re.findall(r"^# TYPE (\S+)", text, re.M)) | {"up"}
    asked = [query for _, query, _ in live.dashboard_queries()]
    for name in ("rules.yaml", "alerts.yaml", "adapter-values.yaml"):
        asked.append((ROOT / "deploy/prometheus" / name).read_text())
    for query in asked:
        for name in re.findall(r"(?<![\w:])((?:weir|process)_\w+)", re.sub(r"\w+:weir_\w+:\w+", "", query)):
            base = re.sub(r"_(bucket|sum|count)$", "", name)
            assert name in exported or base in exported, f"{name} is not exported"


def test_the_dashboard_is_what_its_script_writes():
    subprocess.run([sys.executable, str(ROOT / "deploy/grafana/make_dashboard.py"), "--check"], check=True)


@needs_prometheus
def test_the_variables_find_the_server(served):
    prometheus, _, begin, end = served
    board = json.loads((ROOT / "deploy/grafana/weir.json").read_text())
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            selector, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]).groups()
            found = prometheus.get(f"label/{label}/values", **{"match[]": live.fill(selector)}, start=begin, end=end)
            assert found, variable["query"]


def test_the_dashboard_is_well_laid_out():
    board = json.loads((ROOT / "deploy/grafana/weir.json").read_text())
    taken = set()
    for panel in board["panels"]:
        where = panel["gridPos"]
        assert where["x"] + where["w"] <= 24, panel["title"]
        cells = {(x, y) for x in range(where["x"], where["x"] + where["w"]) for y in range(where["y"], where["y"] + where["h"])}
        assert not cells & taken, f"{panel['title']} lies over another panel"
        taken |= cells
        assert panel["type"] == "row" or (panel["description"] and panel["targets"]), panel["title"]
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)


@needs_promtool
@pytest.mark.parametrize("command", [
    ["check", "rules", "deploy/prometheus/rules.yaml", "deploy/prometheus/alerts.yaml"],
    ["check", "config", "deploy/prometheus/prometheus.yaml"],
    ["test", "rules", "tests/deploy/rules_test.yaml"],
], ids=lambda command: " ".join(command[:2]))
def test_promtool(command):
    done = subprocess.run(["promtool", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_its_test_and_its_paragraph():
    alerts = re.findall(r"- alert: (\w+)", (ROOT / "deploy/prometheus/alerts.yaml").read_text())
    assert len(alerts) > 10
    tested = (ROOT / "tests/deploy/rules_test.yaml").read_text()
    told = (ROOT / "docs/operating.md").read_text()
    for alert in alerts:
        assert f"alertname: {alert}\n" in re.sub(r" +#.*", "", tested), f"{alert} has no unit test"
        assert f"`{alert}`" in told, f"{alert} is not in docs/operating.md"
