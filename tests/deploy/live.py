"""A weir server under a load that fills its queue and makes every kind of error that a client can cause, and a
real Prometheus that scrapes it. Used by test_dashboard.py and by tools/render_dashboard.py."""

import concurrent.futures
import contextlib
import http.client
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SCRAPE_SECONDS = 1


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(what: str, check, process: subprocess.Popen, seconds: float = 30.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"{what} ended with {process.returncode}")
        with contextlib.suppress(OSError, ValueError):
            found = check()
            if found:
                return found
        time.sleep(0.05)
    raise RuntimeError(f"{what} was not there after {seconds:g} s")


class Prometheus:
    """A Prometheus of our own in `folder`, with the project's rules, evaluated every second."""

    def __init__(self, folder: pathlib.Path, targets: list[str]):
        rules = folder / "rules"
        rules.mkdir()
        for name in ("rules.yaml", "alerts.yaml"):
            shutil.copyfile(ROOT / "deploy/prometheus" / name, rules / name)
        config = {
            "global": {"scrape_interval": f"{SCRAPE_SECONDS}s", "evaluation_interval": "1s"},
            "rule_files": ["rules/*.yaml"],
            "scrape_configs": [{"job_name": "weir", "static_configs": [{"targets": targets}]}],
        }
        (folder / "prometheus.yaml").write_text(json.dumps(config))  # JSON is YAML
        address = f"127.0.0.1:{free_port()}"
        self.url = f"http://{address}"
        self._log = open(folder / "prometheus.log", "w")
        self.process = subprocess.Popen(
            ["prometheus", f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data",
             f"--web.listen-address={address}"], stdout=self._log, stderr=subprocess.STDOUT)
        wait_for("prometheus", lambda: urllib.request.urlopen(self.url + "/-/ready", timeout=2).status == 200,
                 self.process)

    def get(self, path: str, **parameters):
        query = urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=20) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{parameters}: {error.read().decode()}") from error

    def query_range(self, query: str, begin: float, end: float, step: float = 1.0) -> list[dict]:
        return self.get("query_range", query=query, start=begin, end=end, step=step)["result"]

    def stop(self):
        self.process.terminate()
        self.process.wait(20)
        self._log.close()


class Weir:
    """`weir serve models/weir-tiny`, small enough that a few clients fill it."""

    def __init__(self, build: pathlib.Path, folder: pathlib.Path, *flags: str):
        self.binary = build / "weir"
        ready = folder / "ready.json"
        self._log = open(folder / "weir.log", "w")
        self.process = subprocess.Popen(
            [str(self.binary), "serve", str(ROOT / "models/weir-tiny"), "--device", "cpu", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0",
             "--metrics", "127.0.0.1:0", "--ready-file", str(ready), *flags],
            stdout=self._log, stderr=subprocess.STDOUT)
        self.ready = wait_for("weir serve", lambda: json.loads(ready.read_text()), self.process)

    def bench(self, *flags: str) -> subprocess.Popen:
        return subprocess.Popen([str(self.binary), "bench", "serve", "--address", self.ready["grpc"], *flags],
                                stdout=self._log, stderr=subprocess.STDOUT)

    def stop(self):
        self.process.terminate()
        self.process.wait(60)
        self._log.close()


def cause_errors(build: pathlib.Path, address: str, end: float) -> None:
    """What wrong and impatient clients do, again and again until `end` (time.monotonic)."""
    sys.path.insert(0, str(build / "python"))
    import grpc
    from weir.v1 import generate_pb2, generate_pb2_grpc, info_pb2, info_pb2_grpc, tokenize_pb2, tokenize_pb2_grpc

    def request(tokens: int):
        out = generate_pb2.GenerateRequest(text="Once upon a time")
        out.stopping.max_tokens = tokens
        out.stopping.ignore_eos = True
        return out

    with grpc.insecure_channel(address) as channel:
        generation = generate_pb2_grpc.GenerationServiceStub(channel)
        tokenizer = tokenize_pb2_grpc.TokenizerServiceStub(channel)
        model = info_pb2_grpc.ModelServiceStub(channel)
        while time.monotonic() < end:
            with contextlib.suppress(grpc.RpcError):  # no prompt
                list(generation.Generate(generate_pb2.GenerateRequest(), timeout=5))
            with contextlib.suppress(grpc.RpcError):  # can never fit
                list(generation.Generate(request(100_000_000), timeout=5))
            with contextlib.suppress(grpc.RpcError):  # too little time
                list(generation.Generate(request(2000), timeout=0.15))
            with contextlib.suppress(grpc.RpcError):  # goes away in the middle
                call = generation.Generate(request(500), timeout=5)
                next(iter(call))
                call.cancel()
            with contextlib.suppress(grpc.RpcError):
                tokenizer.Tokenize(tokenize_pb2.TokenizeRequest(text="Once upon a time"), timeout=5)
                model.GetModel(info_pb2.GetModelRequest(), timeout=5)
            time.sleep(0.05)


def call_http(address: str, end: float) -> None:
    """What clients of the HTTP door do, well and badly, again and again until `end` (time.monotonic)."""

    def ask(method: str, path: str, body: str = "", read: int | None = None) -> None:
        connection = http.client.HTTPConnection(address, timeout=10)
        connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
        connection.getresponse().read(read)
        connection.close()

    def chat(tokens: int, **more) -> str:
        return json.dumps({"model": "weir-tiny", "messages": [{"role": "user", "content": "What is 2 + 3?"}],
                           "max_tokens": tokens, **more})

    while time.monotonic() < end:
        ask("POST", "/v1/chat/completions", chat(24))
        ask("POST", "/v1/chat/completions", chat(24, stream=True))
        ask("POST", "/v1/chat/completions", chat(4000, stream=True, ignore_eos=True), read=200)  # then leaves
        ask("POST", "/v1/completions", json.dumps({"model": "weir-tiny", "prompt": "Once", "max_tokens": 8}))
        ask("POST", "/v1/chat/completions", "{no JSON")
        ask("GET", "/nowhere")
        ask("GET", "/v1/models")
        time.sleep(0.05)


@contextlib.contextmanager
def loaded_server(build: pathlib.Path, seconds: float):
    """Yields (prometheus, begin, end): a server that was under load from begin to end, both in Unix time."""
    with tempfile.TemporaryDirectory(prefix="weir-live-") as name, contextlib.ExitStack() as cleanup:
        folder = pathlib.Path(name)
        weir = Weir(build, folder, "--slots", "8", "--step-sequences", "8", "--threads", "1",
                    "--max-queued-requests", "12", "--metrics-compat", "vllm",
                    "--otlp-endpoint", f"http://127.0.0.1:{free_port()}")
        cleanup.callback(weir.stop)
        metrics = weir.ready["metrics"]
        prometheus = Prometheus(folder, [metrics])
        cleanup.callback(prometheus.stop)
        begin = time.time()
        steady = weir.bench("--clients", "12", "--prompt-tokens", "96", "--output-tokens", "48", "--seconds",
                            str(seconds))
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            errors = pool.submit(cause_errors, build, weir.ready["grpc"], time.monotonic() + seconds)
            door = pool.submit(call_http, weir.ready["http"], time.monotonic() + seconds)
            time.sleep(seconds / 2)
            crowd = weir.bench("--clients", "30", "--prompt-tokens", "32", "--output-tokens", "16", "--seconds",
                               str(seconds / 3))
            errors.result()
            door.result()
        for load in (steady, crowd):
            load.wait(60)
        # The last numbers are scraped and the rules have seen them.
        time.sleep(2 * SCRAPE_SECONDS + 0.5)
        yield prometheus, f"http://{metrics}/metrics", begin, time.time()


def build_folder() -> pathlib.Path:
    return pathlib.Path(os.environ.get("WEIR_BUILD_DIR", ROOT / "build"))


def dashboard_queries() -> list[tuple[str, str, str]]:
    """(panel, query, legend) of every panel, with the dashboard's variables filled in."""
    board = json.loads((ROOT / "deploy/grafana/weir.json").read_text())
    return [(panel["title"], fill(target["expr"]), target["legendFormat"])
            for panel in board["panels"] for target in panel.get("targets", [])]


def fill(query: str) -> str:
    return (query.replace("$__rate_interval", f"{4 * SCRAPE_SECONDS}s").replace("$job", "weir")
            .replace("$instance", ".+"))
