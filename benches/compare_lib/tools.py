"""Programs of the benchmark: those of the system, or those of Debian, npm and PyPI, installed into target/compare."""

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
CACHE = TARGET / "compare"
CLOAKROOM = TARGET / "release/cloakroom"
UPSTREAM = CACHE / "upstream/release/bench-upstream"

DEBIAN = {
    "nginx": "nginx-light", "haproxy": "haproxy", "redis-server": "redis-server", "wrk": "wrk",
    "h2load": "nghttp2-client", "valgrind": "valgrind", "openssl": "openssl", "node": "nodejs", "npm": "npm",
}
NPM = ["express@5.3.0", "express-session@1.19.0", "connect-redis@10.0.0", "redis@6.3.1"]
PYPI = ["Django==5.2.19", "gunicorn==27.0.1", "redis==8.1.0"]


class Failed(Exception):
    """Why a target could not be measured. The table says so, and the others are measured."""


class Unavailable(Failed):
    """A program that cannot be installed here."""


def build():
    """Builds the release of Cloakroom, and the upstream."""
    cargo = ["cargo", "build", "--release", "--locked"]
    subprocess.run([*cargo, "--bin", "cloakroom"], cwd=ROOT, check=True)
    subprocess.run([*cargo, "--target-dir", CACHE / "upstream"], cwd=ROOT / "benches/upstream", check=True)


@functools.cache
def program(name):
    """Returns the path of a program. Installs it if the system has none."""
    # Debian installs servers in /usr/sbin, which is in the PATH of root only.
    path = os.environ["PATH"] + ":/usr/sbin"
    return shutil.which(name, path=path) or shutil.which(name, path=debian_path()) or download(name)


def environment():
    """Returns the environment in which programs run: those in the cache need their libraries."""
    libraries = [str(path) for path in sorted(CACHE.glob("debian/usr/lib/*-linux-gnu"))]
    extra = {"LD_LIBRARY_PATH": ":".join(libraries)} if libraries else {}
    if (valgrind := CACHE / "debian/usr/libexec/valgrind").exists():
        extra["VALGRIND_LIB"] = str(valgrind)
    return {**os.environ, **extra}


def debian_path():
    return ":".join(str(CACHE / "debian" / folder) for folder in ("usr/sbin", "usr/bin"))


def download(name):
    """Unpacks a package of Debian, with what it needs and the system lacks, into the cache. Installs nothing."""
    archives = CACHE / "archives"
    (archives / "partial").mkdir(parents=True, exist_ok=True)
    apt = ["apt-get", "--yes", "--quiet", "--no-install-recommends", "--download-only", "-o",
           f"Dir::Cache::archives={archives}", "-o", "Debug::NoLocking=1", "install", DEBIAN[name]]
    log(f"downloading {DEBIAN[name]}")
    try:
        if subprocess.run(apt, capture_output=True).returncode:
            # The lists of packages may be missing or too old.
            subprocess.run(["apt-get", "update"], capture_output=True)
            run(apt)
        for archive in archives.glob("*.deb"):
            run(["dpkg-deb", "--extract", archive, CACHE / "debian"])
    except FileNotFoundError:
        raise Unavailable(f"{name} is not installed, and there is no apt-get") from None
    found = shutil.which(name, path=debian_path())
    if not found:
        raise Unavailable(f"{DEBIAN[name]} has no {name}")
    return found


@functools.cache
def node_modules():
    """Returns the directory of the packages from npm."""
    folder = CACHE / "node"
    if stamp(folder, NPM):
        log("installing " + " ".join(NPM))
        run([program("npm"), "install", "--no-audit", "--no-fund", "--prefix", folder, *NPM])
        stamp(folder, NPM, write=True)
    return folder / "node_modules"


@functools.cache
def venv():
    """Returns the virtual environment with the packages from PyPI."""
    folder = CACHE / "venv"
    if stamp(folder, PYPI):
        log("installing " + " ".join(PYPI))
        run([sys.executable, "-m", "venv", folder])
        run([folder / "bin/pip", "install", "--quiet", "--disable-pip-version-check", *PYPI])
        stamp(folder, PYPI, write=True)
    return folder


def stamp(folder, packages, write=False):
    """Reports whether a directory lacks these packages; or records that it has them."""
    file = folder / "installed"
    if write:
        file.write_text("\n".join(packages))
    else:
        folder.mkdir(parents=True, exist_ok=True)
    return not file.exists() or file.read_text() != "\n".join(packages)


def run(command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise Unavailable(f"{Path(command[0]).name} failed: {' '.join(last)}")


def log(text):
    print(text, file=sys.stderr, flush=True)
