"""The README's commands for the HTTP door, copied as they stand but for the port."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from server import BUILD, ROOT, Server

README = (ROOT / "README.md").read_text()
BLOCKS = [block for block in re.findall(r"^```\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
          if "127.0.0.1:8080/v1" in block]


@pytest.fixture(scope="module")
def run():
    with Server() as server:
        def run_block(block: str) -> str:
            command = block.replace("http://127.0.0.1:8080", server.url).replace("build/venv", f"{BUILD}/venv")
            return subprocess.run(["bash", "-euo", "pipefail", "-c", command], cwd=ROOT, check=True,
                                  env=os.environ | {"no_proxy": "127.0.0.1"}, timeout=60,
                                  stdout=subprocess.PIPE, text=True).stdout
        yield run_block


def test_curl(run):
    (block,) = [block for block in BLOCKS if block.startswith("curl")]
    out = run(block)
    assert '"content":"27 + 48 = 75"' in out
    assert out.endswith("data: [DONE]\n\n")


def test_python(run):
    (block,) = [block for block in BLOCKS if block.startswith("build/venv")]
    said = re.search(r"It prints `(.*?)`", README).group(1)
    assert run(block) == said + "\n"


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-q", "-p", "no:cacheprovider", *sys.argv[1:]]))
