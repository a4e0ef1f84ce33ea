#!/usr/bin/env python3
"""Writes weir.json, Grafana's dashboard, beside this file. The panels are listed here, a line or two each; a test
checks that weir.json is what this prints and that every query has data from a loaded server.

Usage: make_dashboard.py [--check]
"""

import json
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
# {} in a query stands for these.
SELECT = 'job=~"$job",instance=~"$instance"'
RATE = "$__rate_interval"


def rate(metric: str, labels: str = "", by: str = "") -> str:
    inner = f"rate({metric}{{{SELECT}{',' + labels if labels else ''}}}[{RATE}])"
    return f"sum by ({by}) ({inner})" if by else f"sum({inner})"


def total(metric: str, labels: str = "", by: str = "") -> str:
    inner = f"{metric}{{{SELECT}{',' + labels if labels else ''}}}"
    return f"sum by ({by}) ({inner})" if by else f"sum({inner})"


def quantiles(metric: str, labels: str = "", of=(0.5, 0.9, 0.99), by: str = "") -> list:
    """Percentiles of a histogram; with `by`, one line per value of that label and percentile."""
    keep = f"le, {by}" if by else "le"
    name = f"{{{{{by}}}}} " if by else ""
    return [(f"histogram_quantile({q}, {rate(metric + '_bucket', labels, keep)})", f"{name}p{round(q * 100)}")
            for q in of]


# Each row: title, panels. Each panel: title, kind, unit, width (of 24), what it tells, [(query, legend)].
ROWS = [
    ("Now", [
        ("Model", "stat", "none", 6, "What is served, on which device.",
         [(f"max by (name, device, dtype) (weir_model_info{{{SELECT}}})", "{{name}}, {{dtype}} on {{device}}")]),
        ("Requests", "stat", "reqps", 3, "Requests that end, per second.", [(rate("weir_requests_total"), "")]),
        ("Tokens", "stat", "short", 3, "Tokens generated per second.", [(rate("weir_decode_tokens_total"), "")]),
        ("Running", "stat", "short", 3, "Requests that hold memory.", [(total("weir_running_requests"), "")]),
        ("Queued", "stat", "short", 3, "Requests that wait for memory.", [(total("weir_queue_requests"), "")]),
        ("Memory used", "stat", "percentunit", 3, "The larger of the used shares of slots and pages, of the fullest server.",
         [(f"max(weir_memory_used_ratio{{{SELECT}}})", "")]),
        ("First token p95", "stat", "s", 3, "95 % of the requests have their first token after this long.",
         quantiles("weir_time_to_first_token_seconds", of=(0.95,))),
    ]),
    ("Latency", [
        ("Time to first token", "line", "s", 12, "From arrival to the first token: queue, templates, prefill.",
         quantiles("weir_time_to_first_token_seconds")),
        ("Between tokens", "line", "s", 12, "Time between two tokens of one answer.", quantiles("weir_inter_token_seconds")),
        ("Queue wait", "line", "s", 12, "From arrival to admission, of requests that were admitted.",
         quantiles("weir_queue_wait_seconds")),
        ("Whole request", "line", "s", 12, "From arrival to the end, of requests that ended by themselves.",
         quantiles("weir_request_seconds")),
    ]),
    ("Throughput", [
        ("Tokens per second", "line", "short", 12, "Generated and delivered, run as prompt, and computed for answers that had ended.",
         [(rate("weir_decode_tokens_total"), "decode"), (rate("weir_prefill_tokens_total"), "prefill"),
          (rate("weir_dropped_tokens_total"), "dropped")]),
        ("Requests per second, by outcome", "line", "reqps", 12, "How requests that were taken have ended.",
         [(rate("weir_requests_total", by="outcome") + " > 0", "{{outcome}}")]),
    ]),
    ("Scheduler", [
        ("Running and queued", "line", "short", 8, "Requests that hold memory, their choices, requests that wait, open calls.",
         [(total("weir_running_requests"), "running requests"), (total("weir_running_sequences"), "running sequences"),
          (total("weir_queue_requests"), "queued requests"), (total("weir_open_streams"), "open streams")]),
        ("Queue, share of its limits", "line", "percentunit", 8, "At 100 % requests are refused. The fullest server.",
         [(f'max(weir_queue_requests{{{SELECT}}} / ignoring (limit) weir_limit{{{SELECT},limit="queued_requests"}})', "requests"),
          (f'max(weir_queue_tokens{{{SELECT}}} / ignoring (limit) weir_limit{{{SELECT},limit="queued_tokens"}})', "tokens")]),
        ("Slots", "line", "short", 8, "Slots of recurrent state: each running sequence has one.",
         [(total("weir_slots", by="state"), "{{state}}")]),
        ("Pages", "line", "short", 8, "Pages of keys and values of the attention layers.",
         [(total("weir_pages", by="state"), "{{state}}")]),
        ("Sequences in a step", "line", "short", 8, "Batch occupancy: mean, percentiles and the most that fit.",
         [(f"{rate('weir_step_sequences_sum')} / {rate('weir_step_sequences_count')}", "mean"),
          *quantiles("weir_step_sequences", of=(0.5, 0.95)),
          (f'max(weir_limit{{{SELECT},limit="step_sequences"}})', "limit")]),
        ("Tokens in a step", "line", "short", 8, "Prefill and decode together; and how many prompt tokens may ride beside decodes.",
         [(f"{rate('weir_step_tokens_sum')} / {rate('weir_step_tokens_count')}", "mean"),
          *quantiles("weir_step_tokens", of=(0.95,)),
          (f"avg(weir_prefill_budget_tokens{{{SELECT}}})", "prefill budget")]),
    ]),
    ("Step time", [
        ("Steps per second", "line", "ops", 6, "By what they ran.", [(rate("weir_steps_total", by="kind"), "{{kind}}")]),
        ("Execute, by kind of step", "line", "s", 6, "Time that the model takes for a step.",
         quantiles("weir_step_seconds", 'phase="execute"', (0.5, 0.99), "kind")),
        ("Step time, by phase", "line", "s", 6, "plan and commit are the engine thread's, execute the model's. 99 % of the steps.",
         quantiles("weir_step_seconds", "", (0.5, 0.99), "phase")),
        ("Share of time, by phase", "line", "percentunit", 6, "Of one second; execute near 100 %: the model is the limit. Phases overlap.",
         [(rate("weir_step_seconds_sum", by="phase"), "{{phase}}")]),
    ]),
    ("Memory", [
        ("Memory by pool", "line", "bytes", 12, "Set aside at start. graphs and device: on a GPU.",
         [(total("weir_memory_bytes", 'kind!="device"', "kind"), "{{kind}}")]),
        ("Used share of slots and pages", "line", "percentunit", 6, "Either one at 100 % blocks admission.",
         [(f'sum(weir_slots{{{SELECT},state="used"}}) / sum(weir_slots{{{SELECT}}})', "slots"),
          (f'sum(weir_pages{{{SELECT},state="used"}}) / sum(weir_pages{{{SELECT}}})', "pages")]),
        ("Resident memory", "line", "bytes", 6, "Of the process.",
         [(f"process_resident_memory_bytes{{{SELECT}}}", "{{instance}}")]),
    ]),
    ("Errors", [
        ("gRPC calls per second, by method", "line", "reqps", 6, "All ended calls.",
         [(rate("weir_grpc_calls_total", by="method") + " > 0", "{{method}}")]),
        ("gRPC errors per second", "line", "reqps", 6, "By method and code.",
         [(rate("weir_grpc_calls_total", 'code!="OK"', "method, code") + " > 0", "{{method}} {{code}}")]),
        ("Refused per second", "line", "reqps", 6, "Requests that the scheduler did not take.",
         [(rate("weir_requests_rejected_total", by="reason") + " > 0", "{{reason}}")]),
        ("Ended early per second", "line", "reqps", 6, "By why, and whether they had begun to run.",
         [(rate("weir_requests_cancelled_total", by="reason, phase") + " > 0", "{{reason}}, {{phase}}")]),
    ]),
    ("HTTP door", [
        ("HTTP requests per second, by path", "line", "reqps", 6, "Of servers and gateways.",
         [(rate("weir_http_requests_total", by="path") + " > 0", "{{path}}")]),
        ("HTTP answers other than 200", "line", "reqps", 6, "Per second, by status. 499: the client left.",
         [(rate("weir_http_requests_total", 'status!="200"', "status") + " > 0", "{{status}}")]),
        ("First token through HTTP", "line", "s", 6, "From the request's header to the first token.",
         quantiles("weir_http_time_to_first_token_seconds", of=(0.5, 0.99))),
        ("HTTP request", "line", "s", 6, "From the request's header to the end of the answer: 99 % of those of each path.",
         quantiles("weir_http_request_seconds", of=(0.99,), by="path")),
        ("HTTP connections", "line", "short", 6, "Open ones, requests being answered, connections refused per second.",
         [(total("weir_http_connections"), "open"), (total("weir_http_requests_in_flight"), "in flight"),
          (rate("weir_http_connections_total", 'outcome="refused"'), "refused/s")]),
        ("HTTP bytes per second", "line", "Bps", 6, "Headers included.",
         [(rate("weir_http_received_bytes_total"), "received"), (rate("weir_http_sent_bytes_total"), "sent")]),
        ("Servers behind the door", "line", "short", 6, "1: takes calls. A gateway has several, a server itself.",
         [(f"min by (backend) (weir_http_backend_healthy{{{SELECT}}})", "{{backend}}")]),
        ("Repeated, log lines dropped", "line", "ops", 6, "Generations that went to another server before they began; lost lines of the access log.",
         [(rate("weir_http_retries_total"), "repeated"), (rate("weir_http_access_log_dropped_total"), "lines dropped")]),
    ]),
    ("Text and process", [
        ("Templates and tokenizing", "line", "s", 5, "Waiting for a text thread, and the work itself. 99 % of the prompts.",
         [*[(q, "wait " + n) for q, n in quantiles("weir_text_wait_seconds", of=(0.99,))],
          *[(q, "work " + n) for q, n in quantiles("weir_text_seconds", of=(0.99,))]]),
        ("CPU", "line", "short", 5, "Cores used.",
         [(f"rate(process_cpu_seconds_total{{{SELECT}}}[{RATE}])", "{{instance}}")]),
        ("Open files", "line", "short", 5, "Connections are files too.",
         [(f"process_open_fds{{{SELECT}}}", "{{instance}}")]),
        ("Spans per second", "line", "ops", 5, "Of OpenTelemetry, where it is on: sent, failed, dropped.",
         [(rate("weir_trace_spans_total", by="result"), "{{result}}")]),
        ("Up since", "stat", "dateTimeFromNow", 4, "Start of the youngest process.",
         [(f"max(process_start_time_seconds{{{SELECT}}}) * 1000", "")]),
    ]),
]

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


def panel(number: int, title: str, kind: str, unit: str, about: str, queries: list, where: dict) -> dict:
    out = {
        "id": number,
        "type": "stat" if kind == "stat" else "timeseries",
        "title": title,
        "description": about,
        "datasource": DATASOURCE,
        "gridPos": where,
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [{"refId": chr(ord("A") + i), "expr": query,
                     "legendFormat": legend or "__auto"} for i, (query, legend) in enumerate(queries)],
    }
    if kind == "stat":
        by_name = title == "Model"
        out["options"] = {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "none",
                          "graphMode": "none", "textMode": "name" if by_name else "value", "justifyMode": "auto",
                          "orientation": "auto", "wideLayout": True, "showPercentChange": False,
                          "percentChangeColorMode": "standard"}
    else:
        out["fieldConfig"]["defaults"]["custom"] = {"fillOpacity": 8, "lineWidth": 1, "showPoints": "never"}
        out["options"] = {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
                          "tooltip": {"mode": "multi", "sort": "desc"}}
    return out


def dashboard() -> dict:
    panels, top, number = [], 0, 0
    for title, row in ROWS:
        number += 1
        panels.append({"id": number, "type": "row", "title": title, "collapsed": False, "panels": [],
                       "gridPos": {"x": 0, "y": top, "w": 24, "h": 1}})
        top += 1
        left = height = 0
        for name, kind, unit, width, about, queries in row:
            height = 4 if title == "Now" else 8
            if left + width > 24:
                left, top = 0, top + height
            number += 1
            panels.append(panel(number, name, kind, unit, about, queries, {"x": left, "y": top, "w": width, "h": height}))
            left += width
        top += height
    # Servers, and gateways, which have the HTTP door's numbers alone.
    ours = '{__name__=~"weir_build_info|weir_http_connections"}'
    variable = {"type": "query", "datasource": DATASOURCE, "refresh": 2, "includeAll": True, "multi": True,
                "current": {"text": "All", "value": "$__all"}, "sort": 1}
    return {
        "uid": "weir",
        "title": "Weir",
        "description": "One or more weir servers. docs/operating.md says what to look at when.",
        "tags": ["weir"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": [
            {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"},
            {"name": "job", "label": "Job", "query": f"label_values({ours}, job)", **variable},
            {"name": "instance", "label": "Instance", "query": f'label_values({ours[:-1]},job=~"$job"}}, instance)', **variable},
        ]},
        "annotations": {"list": [
            {"name": "Starts", "enable": True, "iconColor": "blue", "datasource": DATASOURCE,
             "expr": f"changes(process_start_time_seconds{{{SELECT}}}[1m]) > 0", "titleFormat": "{{instance}} started"}]},
        "panels": panels,
    }


def written(board: dict) -> str:
    """A panel per line: small, and a change shows as the lines that it changed."""
    compact = {"ensure_ascii": False, "separators": (",", ":")}
    panels = ",\n".join(json.dumps(panel, **compact) for panel in board["panels"])
    rest = json.dumps({**board, "panels": []}, **compact)
    assert rest.endswith('"panels":[]}')
    return f"{rest[:-2]}\n{panels}\n]}}\n"


def main() -> int:
    text = written(dashboard())
    file = HERE / "weir.json"
    if "--check" in sys.argv[1:]:
        if not file.exists() or file.read_text() != text:
            print(f"{file} is not what make_dashboard.py writes: run it", file=sys.stderr)
            return 1
        return 0
    file.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
