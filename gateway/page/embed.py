#!/usr/bin/env python3
"""Writes the C++ file that holds the page's files: embed.py OUT.cc FILE...

index.html is served at /, every other file at /page/NAME. The output depends on the files' contents only.
"""

import gzip
import hashlib
import pathlib
import sys

CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


def literal(data: bytes) -> str:
    """`data` as adjoining string literals. Octal escapes of three digits: they end by themselves."""
    plain = {0x0A: "\\n", 0x22: '\\"', 0x5C: "\\\\", 0x3F: "\\?"}
    escaped = [plain.get(b) or (chr(b) if 0x20 <= b < 0x7F else f"\\{b:03o}") for b in data]
    lines = ["".join(escaped[at : at + 64]) for at in range(0, len(escaped), 64)]
    return "\n".join(f'    "{line}"' for line in lines) or '    ""'


def main() -> None:
    out = pathlib.Path(sys.argv[1])
    table = {}
    for name in sys.argv[2:]:
        file = pathlib.Path(name)
        table["/" if file.name == "index.html" else f"/page/{file.name}"] = file
    parts = []
    rows = []
    for number, (path, file) in enumerate(sorted(table.items())):
        body = file.read_bytes()
        packed = gzip.compress(body, 9, mtime=0)
        if len(packed) >= len(body):
            packed = b""
        etag = f'\\"{hashlib.sha256(body).hexdigest()[:20]}\\"'
        parts.append(f"constexpr char kBody{number}[] =\n{literal(body)};")
        parts.append(f"constexpr char kGzip{number}[] =\n{literal(packed)};")
        rows.append(
            f'    {{"{path}", "{CONTENT_TYPES[file.suffix]}", {{kBody{number}, sizeof kBody{number} - 1}},\n'
            f'     {{kGzip{number}, sizeof kGzip{number} - 1}}, "{etag}"}},'
        )
    text = "\n".join([
        "// Written by gateway/page/embed.py.",
        '#include "gateway/page/page_files.h"',
        "",
        "namespace weir::gateway {",
        "namespace {",
        "",
        *parts,
        "",
        "constexpr PageFile kFiles[] = {",
        *rows,
        "};",
        "",
        "}  // namespace",
        "",
        "std::span<const PageFile> PageFiles() { return kFiles; }",
        "",
        "}  // namespace weir::gateway",
        "",
    ])
    out.write_text(text, encoding="ascii")


if __name__ == "__main__":
    main()
