"""The real server on free ports, for tests with real clients.

As a module: `with Server() as server: server.base_url`. As a program it runs a command beside a
server, with WEIR_URL (http://HOST:PORT) and WEIR_NODE_MODULES in its environment, and ends with the
command's status:

    server.py COMMAND...
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("WEIR_BUILD_DIR", ROOT / "build"))
MODEL = ROOT / "models/weir-tiny"


class Server:
    """`weir serve models/weir-tiny` with more arguments."""

    def __init__(self, *arguments: str):
        self.arguments = arguments
        self.terminated = False

    def __enter__(self) -> Server:
        self.folder = tempfile.TemporaryDirectory(prefix="weir-clients-")
        ready = pathlib.Path(self.folder.name) / "ready"
        self.log = open(pathlib.Path(self.folder.name) / "log", "w+b")
        command = [BUILD / "weir", "serve", MODEL, "--grpc", "127.0.0.1:0", "--metrics", "127.0.0.1:0",
                   "--http", "127.0.0.1:0", "--device", "cpu", "--ready-file", ready, *self.arguments]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 60
        while not ready.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                raise RuntimeError("the server did not start:\n" + self.output())
            time.sleep(0.02)
        addresses = json.loads(ready.read_text())
        self.grpc = addresses["grpc"]
        self.url = "http://" + addresses["http"]
        self.base_url = self.url + "/v1"
        return self

    def __exit__(self, *error: object) -> None:
        if not self.terminated:
            self.terminate()
        try:
            status = self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        output = self.output()
        self.folder.cleanup()
        if status != 0:
            raise RuntimeError(f"the server ended with {status}:\n{output}")

    def terminate(self) -> None:
        """SIGTERM: it drains and ends, by itself."""
        self.terminated = True
        self.process.send_signal(signal.SIGTERM)

    def output(self) -> str:
        self.log.flush()
        self.log.seek(0)
        return self.log.read().decode(errors="replace")

    def metric(self, name: str) -> float:
        """A series such as weir_slots{state="used"}, as /metrics has it now."""
        with urllib.request.urlopen(self.url + "/metrics", timeout=10) as response:
            text = response.read().decode()
        (value,) = re.findall(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(value)

    def wait_until_idle(self, seconds: float = 5) -> None:
        """Fails when slots are still in use after that time."""
        deadline = time.monotonic() + seconds
        while used := self.metric('weir_slots{state="used"}'):
            assert time.monotonic() < deadline, f"{used} slots are still in use"
            time.sleep(0.02)


def main() -> int:
    with Server() as server:
        more = {"WEIR_URL": server.url, "WEIR_NODE_MODULES": str(BUILD / "node/node_modules")}
        return subprocess.run(sys.argv[1:], env=os.environ | more).returncode


if __name__ == "__main__":
    sys.exit(main())
