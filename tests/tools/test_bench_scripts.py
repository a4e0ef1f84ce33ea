"""The scripts around the benchmarks: bench/peers, tools/gpu_check.sh. WEIR_BUILD_DIR names the build folder."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PEERS = ROOT / "bench" / "peers"
BUILD = pathlib.Path(os.environ.get("WEIR_BUILD_DIR", ROOT / "build"))
needs_weir = pytest.mark.skipif(not (BUILD / "weir").exists(), reason="weir is not built")


def run(*command, **kwargs):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120, **kwargs)


@needs_weir
def test_fla_measures_what_weir_measures():
    sys.path.insert(0, str(PEERS))
    import fla_bench

    listed = [json.loads(line) for line in run(BUILD / "weir", "bench", "kernels", "--list").stdout.splitlines()]
    ours = {(line["op"], line["variant"], line["batch"], line["tokens"], line["heads"], line["heads_qk"])
            for line in listed if line["op"].startswith("recurrence_")}
    assert ours == set(fla_bench.CASES)


@pytest.mark.parametrize("script", [["fla_bench.py"], ["vllm_bench.py", "step", ROOT / "tests/golden/hybrid_gla/config.json"]])
def test_a_missing_library_is_a_sentence(script, tmp_path):
    # Modules of these names that cannot be imported stand in for machines without the libraries.
    for name in ("torch", "vllm"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not here')\n")
    ran = run(sys.executable, PEERS / script[0], *script[1:], env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert ran.returncode == 3
    assert "is not installed" in ran.stderr
    assert ran.stdout == ""


def test_compare_pairs_by_what_was_measured(tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.write_text('{"phase":"machine","device":"x"}\n{"op":"a","rows":1,"us":10.0,"copies":3}\n'
                    '{"op":"a","rows":2,"us":7.0}\n{"phase":"decode","batch":4,"tokens_per_second":300.0}\n')
    theirs.write_text('{"op":"a","rows":1,"us":25.0,"engine":"y"}\n{"op":"b","rows":2,"us":1.0}\n'
                      '{"phase":"decode","batch":4,"tokens_per_second":100.0}\n{"op":"a","rows":2,"skipped":"no"}\n')
    ran = run(sys.executable, PEERS / "compare.py", ours, theirs)
    assert ran.returncode == 0
    lines = ran.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["2.50x", "3.00x"]
    assert "a rows=1" in lines[0] and "decode batch=4" in lines[1]
    assert "2 pairs; 1 lines of the first and 1 of the second" in ran.stderr


@needs_weir
def test_gpu_check_tells_good_from_bad(tmp_path):
    shapes = tmp_path / "shapes"
    shapes.mkdir()
    config = json.loads((ROOT / "tests/golden/hybrid_gated_deltanet/config.json").read_text())
    config["max_position_embeddings"] = 32768
    for name in ("qwen3_5_9b.json", "qwen3_5_0_8b.json"):
        (shapes / name).write_text(json.dumps(config))
    script = [ROOT / "tools/gpu_check.sh", "--device", "cpu", "--shapes", shapes, "--out", tmp_path / "out"]
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "weir").symlink_to(BUILD / "weir")
    good = run(*script, "--folder", tmp_path / "folder", "start", "serve", "tests")
    assert good.returncode == 0, good.stdout + good.stderr
    rows = [line.split("\t") for line in (tmp_path / "out/summary.tsv").read_text().splitlines()]
    assert [row[:3] for row in rows] == [
        ["start", "generate weir-tiny", "ok"], ["start", "serve-weir-tiny", "ok"], ["start", "serve-9b", "ok"],
        ["serve", "64 clients", "ok"], ["serve", "256 clients", "ok"], ["tests", "-", "skipped"]]
    # A shape that cannot be served, a test that fails.
    (shapes / "qwen3_5_9b.json").write_text('{"model_type": "unheard_of"}')
    tests = tmp_path / "folder" / "tests"
    tests.mkdir()
    (tests / "kernels_bad_test").write_text("#!/bin/sh\necho '[  FAILED  ] Some.Test'\nexit 1\n")
    (tests / "kernels_bad_test").chmod(0o755)
    bad = run(*script, "--folder", tmp_path / "folder", "tests", "serve")
    assert bad.returncode == 1
    rows = [line.split("\t") for line in (tmp_path / "out/summary.tsv").read_text().splitlines()]
    assert [row[:3] for row in rows] == [["tests", "kernels_bad_test", "FAILED"], ["serve", "server", "FAILED"]]
    assert "Some.Test" in rows[0][3] and "unheard_of" in rows[1][3]


@needs_weir
def test_gpu_check_reads_the_sanitizer(tmp_path):
    # A stand-in that runs the program, and finds a race in one of two tests.
    stub = tmp_path / "bin" / "compute-sanitizer"
    stub.parent.mkdir()
    stub.write_text('#!/bin/bash\ntool=$2; program=$7; "$program"\n'
                    '[[ $tool == racecheck && $program == *racy* ]] || exit 0\n'
                    'printf "========= X\\n========= Error: Race reported\\n"; exit 99\n')
    tests = tmp_path / "folder" / "tests"
    tests.mkdir(parents=True)
    (tmp_path / "folder" / "weir").symlink_to(BUILD / "weir")
    for name in ("fine", "racy"):
        (tests / f"kernels_{name}_test").write_text('#!/bin/sh\necho "[====] 4 tests from 2 test suites ran. (0 ms total)"\n')
    for path in (stub, *tests.iterdir()):
        path.chmod(0o755)
    ran = run(ROOT / "tools/gpu_check.sh", "--device", "cpu", "--folder", tmp_path / "folder", "--out", tmp_path / "out",
              "sanitize", env={**os.environ, "PATH": f"{stub.parent}:{os.environ['PATH']}"})
    assert ran.returncode == 1
    rows = [line.split("\t") for line in (tmp_path / "out/summary.tsv").read_text().splitlines()]
    assert [row[1:3] for row in rows] == [
        ["memcheck kernels_fine_test", "ok"], ["memcheck kernels_racy_test", "ok"],
        ["racecheck kernels_fine_test", "ok"], ["racecheck kernels_racy_test", "FAILED"]]
    assert "12 cases" in rows[0][3] and "Race reported" in rows[3][3]
