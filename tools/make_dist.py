#!/usr/bin/env python3
"""Makes a folder that runs on a bare Debian 12 or Ubuntu 24.04: the stripped binary, the few libraries that these
lack, the model that ships, the licences of all that is inside.

Usage: make_dist.py BUILD_FOLDER DIST_FOLDER [--without-cublaslt]
"""

import argparse
import glob
import json
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
# What the C library, the C++ compiler and the package manager of every Debian and Ubuntu bring.
SYSTEM_LIBRARIES = re.compile(r"^(linux-vdso|ld-linux[-\w]*|libc|libm|libdl|librt|libpthread|libgcc_s|libstdc\+\+|libz)\.so")
# Debian packages whose code is inside the binary or in lib/ (the first that is installed of each line).
PACKAGES = [
    "libabsl-dev", "libc-ares-dev", "libcivetweb1", "libcli11-dev", "libfmt9 libfmt-dev", "libgrpc++-dev",
    "libprotobuf-dev", "libre2-dev", "libspdlog-dev", "libssl-dev", "libxxhash-dev", "libyaml-cpp-dev",
    "nlohmann-json3-dev", "prometheus-cpp-dev", "zlib1g-dev",
]
README = """# Weir {version}

    bin/weir serve models/weir-tiny
    bin/weir generate models/weir-tiny --prompt "Once upon a time"
    bin/weir --help

Runs where glibc is {glibc} or newer. {cuda}
LICENSE is Weir's licence; licenses/ holds those of the libraries inside.
"""


def run(*command: str, cwd: pathlib.Path | None = None) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=cwd).stdout


def cached(build: pathlib.Path, name: str) -> str:
    match = re.search(rf"^{name}(:\w+)?=(.*)$", (build / "CMakeCache.txt").read_text(), re.M)
    return match.group(2) if match else ""


def copy_libraries(binary: pathlib.Path, to: pathlib.Path) -> None:
    """Shared libraries that the binary needs and a bare system lacks."""
    to.mkdir(exist_ok=True)
    for line in run("ldd", str(binary)).splitlines():
        match = re.match(r"\s*(\S+) => (\S+) \(", line)
        if "not found" in line:
            sys.exit(f"{binary} lacks {line.strip()}")
        if match and not SYSTEM_LIBRARIES.match(match.group(1)):
            target = to / match.group(1)
            shutil.copyfile(match.group(2), target)
            subprocess.run(["strip", "--strip-unneeded", str(target)], check=True)


def copy_package_licences(to: pathlib.Path) -> None:
    for names in PACKAGES:
        for name in names.split():
            source = pathlib.Path("/usr/share/doc") / name / "copyright"
            if source.exists():
                shutil.copyfile(source, to / f"{name}.txt")
                break
        else:
            sys.exit(f"no copyright file of {names} in /usr/share/doc: this must be built from the distribution's packages")
    # The files above refer to these instead of repeating them.
    for name in ("Apache-2.0", "BSD"):
        shutil.copyfile(f"/usr/share/common-licenses/{name}", to / f"common-{name}.txt")


def copy_crate_licences(cargo: str, to: pathlib.Path) -> None:
    """One file with the licence texts of all Rust crates; each text once, with the crates it is for."""
    packages = json.loads(run(cargo, "metadata", "--locked", "--offline", "--format-version", "1", "--filter-platform",
                              "x86_64-unknown-linux-gnu", cwd=ROOT / "text/rust"))["packages"]
    texts: dict[str, list[str]] = {}
    listing = []
    for package in packages:
        if not package["source"]:
            continue
        name = f"{package['name']} {package['version']}"
        listing.append(f"{name}: {package['license'] or 'see its text below'}, {package['repository'] or ''}")
        folder = pathlib.Path(package["manifest_path"]).parent
        for file in sorted(folder.glob("*")):
            if re.match(r"(LICEN[CS]E|COPYING|NOTICE|UNLICENSE)", file.name, re.I) and file.is_file():
                texts.setdefault(file.read_text(errors="replace").strip(), []).append(f"{name} ({file.name})")
        # The C library that this crate compiles in.
        for file in folder.glob("oniguruma/COPYING"):
            texts.setdefault(file.read_text(errors="replace").strip(), []).append("Oniguruma")
    parts = ["\n".join(sorted(listing))]
    parts += [", ".join(names) + ":\n\n" + text for text, names in texts.items()]
    (to / "rust-crates.txt").write_text(("\n\n" + "-" * 100 + "\n\n").join(parts) + "\n")


def copy_cuda(build: pathlib.Path, dist: pathlib.Path, with_cublaslt: bool) -> str:
    """cuBLASLt beside the binary, NVIDIA's licence; what the README says about it."""
    root = cached(build, "WEIR_CUDA_USED")
    if not root:
        return "This build has no CUDA: it runs on the CPU."
    terms = glob.glob(f"{root}/../../nvidia_cuda_runtime*/licenses/License.txt") + glob.glob(f"{root}/EULA.txt")
    if not terms:
        sys.exit(f"NVIDIA's licence was not found beside {root}")
    shutil.copyfile(terms[0], dist / "licenses/nvidia-cuda.txt")
    if with_cublaslt:
        library = next((p for p in glob.glob(f"{root}/lib*/libcublasLt.so.*") if re.search(r"\.so\.\d+$", p)), None)
        if not library:
            sys.exit(f"libcublasLt was not found in {root}")
        shutil.copyfile(library, dist / "lib" / pathlib.Path(library).name)
    where = "lies in lib/" if with_cublaslt else "is not in this folder: install it, or copy libcublasLt.so.13 into lib/"
    return ("With an NVIDIA GPU of compute capability 8.0 or newer and its driver (580 or newer) it runs there; "
            f"cuBLASLt, which it opens then, {where}.")


def newest_glibc(folder: pathlib.Path) -> str:
    versions = set()
    for file in [folder / "bin/weir", *(folder / "lib").glob("*.so*")]:
        if "cublas" not in file.name:
            versions |= {tuple(map(int, v.split("."))) for v in
                         re.findall(r"GLIBC_(\d+\.\d+(?:\.\d+)?)", run("readelf", "-V", str(file)))}
    return ".".join(map(str, max(versions)))


def size_of(path: pathlib.Path) -> int:
    return sum(f.stat().st_size for f in ([path] if path.is_file() else path.rglob("*")) if f.is_file())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("dist", type=pathlib.Path)
    parser.add_argument("--without-cublaslt", action="store_true")
    arguments = parser.parse_args()
    version = run(str(arguments.build / "weir"), "--version").split()[1]
    folder = arguments.dist / f"weir-{version}"
    shutil.rmtree(folder, ignore_errors=True)
    licences = folder / "licenses"
    licences.mkdir(parents=True)
    run("cmake", "--install", str(arguments.build), "--prefix", str(folder.resolve()), "--strip")
    copy_libraries(arguments.build / "weir", folder / "lib")
    shutil.copytree(ROOT / "models/weir-tiny", folder / "models/weir-tiny")
    shutil.copyfile(ROOT / "LICENSE", folder / "LICENSE")
    copy_package_licences(licences)
    copy_crate_licences(cached(arguments.build, "WEIR_CARGO"), licences)
    cuda = copy_cuda(arguments.build, folder, not arguments.without_cublaslt)
    (folder / "README.md").write_text(README.format(version=version, cuda=cuda, glibc=newest_glibc(folder)))
    print(f"{folder}: {size_of(folder) / 2**20:.1f} MiB")
    for part in ("bin", "lib", "models", "licenses"):
        print(f"  {part:10} {size_of(folder / part) / 2**20:8.1f} MiB  {', '.join(sorted(f.name for f in (folder / part).iterdir())) if part in ('bin', 'lib', 'models') else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
