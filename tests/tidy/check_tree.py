#!/usr/bin/env python3
"""Checks of the tree itself: who includes whom, how long files and functions are, where family names
stand, and that nothing unfinished or foreign is left. Prints every finding; exit 1 when there is one.

Usage: check_tree.py ROOT
"""

import pathlib
import re
import subprocess
import sys

# Folder -> folders whose headers it may include besides its own (docs/ARCHITECTURE.md).
MAY_INCLUDE = {
    "core": set(),
    "metrics": {"core"},
    "text": {"core"},
    "cache": {"core"},
    "kernels": {"core"},
    "model": {"core", "kernels", "cache", "scheduler"},
    "scheduler": {"core", "cache", "metrics"},
    "server": {"core", "scheduler", "text", "metrics", "proto"},
    "gateway": {"core", "metrics", "proto"},
}
# Single headers allowed across an edge that is otherwise closed.
ONLY_HEADERS = {
    ("model", "cache"): {"cache/layout.h"},
    ("model", "scheduler"): {"scheduler/executor.h", "scheduler/sampling_params.h"},
    ("server", "cache"): {"cache/layout.h"},
    ("server", "gateway"): {"gateway/options.h"},
}
# The composition root may include everything.
ROOT_FILES = re.compile(r"^server/(main\.cc|commands/)")
# Third-party headers that only these folders may include.
FOREIGN = {
    "grpc": re.compile(r"<(grpcpp|grpc)/"),
    "cuda": re.compile(r"<(cuda|cublas|nvtx|cub/|mma)"),
    "nlohmann": re.compile(r"<nlohmann/"),
    "prometheus": re.compile(r"<prometheus/"),
    "yaml": re.compile(r"<yaml-cpp/"),
}
FOREIGN_ALLOWED = {
    "grpc": {"server", "gateway"},
    "cuda": {"core/cuda", "kernels/cuda"},
    "nlohmann": {"model", "text", "server", "gateway"},
    "prometheus": {"metrics"},
    "yaml": {"server"},
}
MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 70
# Functions past the limit today, by file: the number may only shrink.
LONG_FUNCTIONS_ALLOWED = {}
# (qwen3_coder is what the world calls a form of tool calls.)
FAMILY_NAMES = re.compile(r"\b(?!qwen3_coder\b)(qwen3|qwen3_5|nemotron_h|falcon_h1|granitemoehybrid|kimi_linear)\w*")
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")

INCLUDE = re.compile(r'^\s*#\s*include\s+(["<])([^">]+)[">]')
CODE_FOLDERS = tuple(MAY_INCLUDE)


def tracked(root: pathlib.Path) -> list[str]:
    """Files of the project: those git tracks, or all of them in a plain copy."""
    try:
        out = subprocess.run(["git", "-C", str(root), "ls-files"], check=True, capture_output=True, text=True)
        return out.stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return [str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and "build" not in p.parts]


def check_includes(path: str, lines: list[str]) -> list[str]:
    folder = path.split("/")[0]
    if folder not in MAY_INCLUDE or ROOT_FILES.match(path):
        return []
    found = []
    for number, line in enumerate(lines, 1):
        match = INCLUDE.match(line)
        if not match:
            continue
        quoted, header = match.group(1) == '"', match.group(2)
        target = header.split("/")[0]
        if quoted and target == "weir" and folder not in ("server", "gateway"):
            found.append(f"{path}:{number}: includes the generated {header}; only server and gateway may")
        if quoted and target in MAY_INCLUDE and target != folder:
            allowed = ONLY_HEADERS.get((folder, target))
            if allowed is not None:
                if header not in allowed:
                    found.append(f"{path}:{number}: {folder} may include only {sorted(allowed)} of {target}, not {header}")
            elif target not in MAY_INCLUDE[folder]:
                found.append(f"{path}:{number}: {folder} may not include {target} ({header})")
        for name, pattern in FOREIGN.items():
            parent = path.rsplit("/", 1)[0]
            if pattern.search(line) and not any(
                parent == place or parent.startswith(place + "/") for place in FOREIGN_ALLOWED[name]
            ):
                found.append(f"{path}:{number}: {folder} may not include {header}")
            if pattern.search(line) and name == "nlohmann" and path.endswith(".h") and "json_fwd" not in line:
                found.append(f"{path}:{number}: {header} is too heavy for a header of ours")
    return found


def long_functions(lines: list[str]) -> list[tuple[int, int]]:
    """(first line, length) of every function past the limit. As clang-format lays it out: a signature
    that begins in column 0, its opening brace at the end of that line or of a continuation, and the
    closing brace in column 0."""
    not_a_function = re.compile(
        r"^(namespace|class|struct|enum|union|extern|using|typedef|#|//|const(expr)?\b.*=|static const|inline constexpr)"
    )
    found = []
    signature = body = None
    for number, line in enumerate(lines, 1):
        if body is not None:
            if line.startswith("}"):
                if number - body + 1 > MAX_FUNCTION_LINES:
                    found.append((body, number - body + 1))
                body = None
            continue
        if re.match(r"^[A-Za-z_~]", line) and not not_a_function.match(line):
            signature = number
        elif signature is not None and not line.startswith("    "):
            signature = None
        if signature is not None and line.endswith("{") and ")" in "".join(lines[signature - 1 : number]):
            body, signature = signature, None
        elif signature is not None and line.endswith((";", "}")):
            signature = None
    return found


def main() -> int:
    root = pathlib.Path(sys.argv[1])
    findings: list[str] = []
    long_by_file: dict[str, list[tuple[int, int]]] = {}
    total_bytes = 0
    for path in tracked(root):
        file = root / path
        if not file.is_file():
            continue
        total_bytes += file.lstat().st_size  # of a link: of the link
        if not path.endswith((".cc", ".h", ".cu", ".cuh", ".rs", ".py", ".proto", ".sh")):
            continue
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        if path.startswith(CODE_FOLDERS) and path.endswith((".cc", ".h")):
            findings += check_includes(path, lines)
            if len(lines) > MAX_FILE_LINES:
                findings.append(f"{path}: {len(lines)} lines; the limit is {MAX_FILE_LINES}")
            if not path.startswith("kernels/"):
                long_by_file[path] = long_functions(lines)
            if not path.startswith("model/families/"):
                for number, line in enumerate(lines, 1):
                    if FAMILY_NAMES.search(line):
                        findings.append(f"{path}:{number}: family names belong into model/families only: {line.strip()[:80]}")
        if path != "tests/tidy/check_tree.py":
            for number, line in enumerate(lines, 1):
                if UNFINISHED.search(line):
                    findings.append(f"{path}:{number}: unfinished: {line.strip()[:80]}")
    for path, functions in long_by_file.items():
        allowed = LONG_FUNCTIONS_ALLOWED.get(path, 0)
        if len(functions) > allowed:
            where = ", ".join(f"line {start}: {length} lines" for start, length in functions)
            findings.append(f"{path}: functions past {MAX_FUNCTION_LINES} lines ({where}); {allowed} allowed")
    if total_bytes > 40_000_000:
        findings.append(f"tracked files are {total_bytes // 1_000_000} MB in all; the limit is 40 MB")
    for finding in findings:
        print(finding)
    print(f"{len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
