"""The parts of a runtime, gathered once into a cache: a second package needs no network.

Each part is checked against its SHA-256 before every use, whether it was just fetched or lay there.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from field.package.errors import CannotGather, NotAsLocked
from field.package.lock import Deb, Wheel
from rpi_runtime.backends.weight_cache import default_folder
from rpi_runtime.bundle import sha256_of

Tell = Callable[[str], None]  # is given one line about what is being done
_CHUNK_BYTES = 1 << 20
_SUITE = "bookworm"
_ARCHIVE = "https://deb.debian.org/debian"
_SNAPSHOT = "https://snapshot.debian.org/file"
_REACH = "Connect this machine to the internet, or copy the cache {} of one that made the same package."
_SECONDS = 60  # without a byte


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/hypervl-edge/packages`, with ~/.cache where the variable is not set."""
    return default_folder().with_name("packages")


def gather_wheels(wheels: Sequence[Wheel], python: str, cache: Path, tell: Tell) -> list[Path]:
    """Files of `wheels`, in their order. pip fetches what is missing, from where the user has it set to."""
    folder = cache / "wheels"
    folder.mkdir(parents=True, exist_ok=True)
    missing = [wheel for wheel in wheels if not _is_there(folder / wheel.file, wheel.sha256)]
    if missing:
        total = sum(wheel.bytes for wheel in missing)
        tell(f"fetching {len(missing)} wheels, {total / 1e6:.0f} MB")
        _pip_download(missing, python, folder)
    return [folder / wheel.file for wheel in wheels]


def gather_debs(debs: Sequence[Deb], cache: Path, tell: Tell) -> list[Path]:
    """Files of `debs`, in their order: from the archive that apt uses here, Debian's own, or its memory of
    every package there ever was."""
    folder = cache / "debs"
    folder.mkdir(parents=True, exist_ok=True)
    missing = [deb for deb in debs if not _is_there(folder / deb.file, deb.sha256)]
    archives = list(dict.fromkeys([*_apt_archives(), _ARCHIVE])) if missing else []
    for number, deb in enumerate(missing, 1):
        tell(f"fetching Debian package {number} of {len(missing)}: {deb.package}, {deb.bytes / 1e6:.1f} MB")
        urls = [f"{archive.rstrip('/')}/{deb.path}" for archive in archives]
        _fetch([*urls, f"{_SNAPSHOT}/{deb.sha1}"], deb, folder)
    return [folder / deb.file for deb in debs]


def _is_there(file: Path, sha256: str) -> bool:
    """A file that is not what it should be goes away: it was cut off, or changed."""
    if file.is_file() and sha256_of(file) == sha256:
        return True
    file.unlink(missing_ok=True)
    return False


def _pip_download(wheels: Sequence[Wheel], python: str, folder: Path) -> None:
    if find_spec("pip") is None:
        raise CannotGather(
            f"this Python ({sys.executable}) has no pip, which fetches wheels",
            f"Install it: {sys.executable} -m ensurepip",
        )
    tags = sorted({tag for wheel in wheels for tag in wheel.tags if tag != "any"})
    platforms = [part for tag in tags for part in ("--platform", tag)]
    version = ["--python-version", python, "--implementation", "cp", "--abi", f"cp{python.replace('.', '')}"]
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="partial-") as name:
        wanted = Path(name) / "wanted.txt"
        wanted.write_text("".join(f"{w.name}=={w.version} --hash=sha256:{w.sha256}\n" for w in wheels))
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-input", "--disable-pip-version-check"]
        kinds = ["--no-deps", "--only-binary=:all:", "--require-hashes", "-r", str(wanted), "-d", name]
        abis = ["--abi", "abi3", "--abi", "none"]
        done = subprocess.run([*pip, *kinds, *version, *abis, *platforms], capture_output=True, text=True)
        if done.returncode:
            raise _what_pip_said(done.stderr or done.stdout, folder.parent)
        for wheel in wheels:
            came = Path(name) / wheel.file
            if not came.is_file() or sha256_of(came) != wheel.sha256:
                raise NotAsLocked(
                    f"{wheel.file}: what pip fetched is not what field/data/wheels.lock says",
                    "Ask the package index that pip uses here why it has another file of that name.",
                )
            came.replace(folder / wheel.file)


def _what_pip_said(text: str, cache: Path) -> CannotGather | NotAsLocked:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if "DO NOT MATCH THE HASHES" in text:
        which = next((found[1] for line in lines if (found := re.search(r"^(\S+==\S+|http\S+)", line))), "")
        return NotAsLocked(
            f"{which or 'a wheel'}: what pip fetched is not what field/data/wheels.lock says",
            "Ask the package index that pip uses here why it has another file of that name.",
        )
    if re.search(r"ConnectionError|ConnectTimeout|ReadTimeout|ProxyError|SSLError|name resolution", text):
        return CannotGather("pip cannot reach its package index for wheels", _REACH.format(cache))
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")]
    return CannotGather(f"pip cannot fetch wheels: {(errors or lines or ['?'])[-1]}", _REACH.format(cache))


def _apt_archives() -> list[str]:
    """The archives of Debian itself that apt uses on this machine, if it has apt."""
    if shutil.which("apt-get") is None:
        return []
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages"],
        capture_output=True,
        text=True,
    )
    pairs = (line.split(" ", 1) for line in listed.stdout.splitlines() if " " in line)
    return [uri for uri, release in pairs if release.startswith(_SUITE) and "security" not in uri]


def _fetch(urls: Sequence[str], deb: Deb, folder: Path) -> None:
    """Into `folder`, from the first of `urls` that has it; raises `CannotGather` with what the last said."""
    partial = folder / f"{deb.file}.partial"
    said: Exception | None = None
    wrong = False
    try:
        for url in urls:
            try:
                with urllib.request.urlopen(url, timeout=_SECONDS) as answer, partial.open("wb") as out:
                    shutil.copyfileobj(answer, out, _CHUNK_BYTES)
            except (urllib.error.URLError, TimeoutError, ConnectionError, ValueError) as error:
                said = said or error
                continue
            if sha256_of(partial) == deb.sha256:
                partial.replace(folder / deb.file)
                return
            wrong = True
    finally:
        with suppress(OSError):
            partial.unlink()
    if wrong:
        raise NotAsLocked(
            f"{deb.file}: what was fetched is not what field/data/debs.lock says",
            "A proxy may have answered in place of the archive: open the address in a browser to see.",
        )
    raise CannotGather(f"{deb.file} cannot be fetched: {said}", _REACH.format(folder.parent))
