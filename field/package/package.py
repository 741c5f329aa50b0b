"""A package: a runtime and a bundle with what installs them, as one archive that needs no network."""

from __future__ import annotations

import hashlib
import json
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from field.package.contents import BUNDLE, own_version
from field.package.errors import NotAsLocked
from field.package.launchers import current, current_launcher, filled
from field.package.runtime import Runtime
from field.package.tree import Source, files_of, write_tar
from field.platforms import ANDROID_PREFIX, OWN, OWN_PYTHON, Platform
from rpi_runtime.bundle import Bundle, sha256_of
from rpi_runtime.errors import UsageError
from rpi_runtime.manifest import DECODER, MANIFEST_FILE, Manifest

TOP = "hypervl-edge"  # the one folder of an archive
# Recipes of which tflite-runtime gets no graph right, and what it gets right of the decoder's.
_MISREAD, _RIGHT_DECODER = ("int8", "int4"), "int4-channel"
_SPARE_BYTES = 16 << 20  # beyond its files: folders, the ends of blocks, bytecode


@dataclass(frozen=True)
class PackedBundle:
    id: str
    name: str
    files: tuple[tuple[str, Path, str], ...]  # place in the bundle, file, SHA-256
    bytes: int
    gpu: bool  # whether a graph in it is for a GPU

    @classmethod
    def open(cls, folder: Path) -> PackedBundle:
        """Every file the manifest lists, read and checked. What graphs took in this machine's memory stays
        here. Raises `BundleError`, `NotAsLocked`."""
        bundle = Bundle.open(folder)
        manifest = bundle.folder / MANIFEST_FILE
        listed = {file.path: file.sha256 for file in bundle.manifest.files()}
        listed[MANIFEST_FILE] = sha256_of(manifest)
        for path, sha256 in listed.items():
            if sha256_of(bundle.folder / path) != sha256:
                raise NotAsLocked(
                    f"{folder}: {path} is not what the manifest says",
                    "Convert the checkpoint again, or copy the bundle again.",
                )
        files = tuple((path, bundle.folder / path, listed[path]) for path in sorted(listed))
        total = sum(file.stat().st_size for _, file, _ in files)
        name = safe_name(folder.resolve().name)
        return cls(bundle_id(manifest), name, files, total, has_gpu_graph(bundle.manifest))


@dataclass(frozen=True)
class Package:
    """What lies under one folder, wherever that is."""

    runtime: Runtime
    bundle: PackedBundle | None

    @property
    def name(self) -> str:
        return self.bundle.name if self.bundle else ""

    @property
    def bytes_by_part(self) -> dict[str, int]:
        return {**self.runtime.bytes_by_part, **({BUNDLE: self.bundle.bytes} if self.bundle else {})}

    @property
    def bytes(self) -> int:
        return sum(self.bytes_by_part.values())

    @property
    def current(self) -> str:
        return current(self.runtime.id, self.bundle.id if self.bundle else "", self.name)

    def installed(self, top: str) -> list[Source]:
        """As it lies under `top` on a device, but for `current`."""
        bundle = self.bundle
        held = [(f"bundles/{bundle.id}/{path}", file) for path, file, _ in bundle.files] if bundle else []
        return [
            (f"{top}/bin/toolkit", current_launcher(self.runtime.platform).encode()),
            *((f"{top}/{place}", file) for place, file in held),
            (f"{top}/runtimes/{self.runtime.id}", self.runtime.folder),
        ]


def check_runs_there(bundle: Path, platform: Platform) -> None:
    """Raises `UsageError` for graphs that tflite-runtime loads and computes wrongly
    (`rpi_runtime/backends/old_kernels.py`): that device would refuse them."""
    if platform.machine != "armv7l":
        return
    components = Bundle.open(bundle, verify=False).manifest.components
    wrong = [
        f"{c.name} {c.recipe}"
        for c in components
        if c.recipe.startswith(_MISREAD) and (c.name, c.recipe) != (DECODER, _RIGHT_DECODER)
    ]
    if wrong:
        raise UsageError(
            f"{bundle}: tflite-runtime, which runs on {platform.name}, miscomputes {', '.join(wrong)}",
            "Convert for such boards: --recipe vrc=w8a8,vision=w8a8,decoder=fp16, or fp16 for all.",
        )


def write_archive(
    package: Package, target: Path, on_bytes: Callable[[int], object] = lambda count: None
) -> None:
    """`target`, a .tar.gz with its installer. The same package gives the same bytes."""
    sources = [*package.installed(TOP), *((f"{TOP}/{name}", text.encode()) for name, text in _texts(package))]
    sums = "".join(f"{digest}  {path.removeprefix(f'{TOP}/')}\n" for path, digest in sha256_sums(sources))
    write_tar(target, [*sources, (f"{TOP}/files.sha256", sums.encode())], on_bytes)


def sha256_sums(sources: list[Source]) -> list[tuple[str, str]]:
    """Places and hashes of all files."""
    found = []
    for place, source in sources:
        if isinstance(source, bytes):
            found.append((place, hashlib.sha256(source).hexdigest()))
        elif source.is_dir():
            found += [(f"{place}/{path}", sha256_of(file)) for path, file in files_of(source)]
        else:
            found.append((place, sha256_of(source)))
    return found


def has_gpu_graph(manifest: Manifest) -> bool:
    """Whether LiteRT's GPU library is needed."""
    graphs = [graph for component in manifest.components for graph in component.graphs]
    return any(graph.delegate.partition(":")[0] == "gpu" for graph in graphs)


def bundle_id(manifest: Path) -> str:
    """Of a bundle, by its manifest, which names all its files by their content."""
    return sha256_of(manifest)[:16]


def safe_name(name: str) -> str:
    """Without what a shell or a service's file would take for something else."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "bundle"


def description(package: Package) -> dict[str, object]:
    """What `package.json` says, and `toolkit package --json`."""
    runtime, bundle = package.runtime, package.bundle
    return {
        "name": "hypervl-edge",
        "version": own_version(),
        "target": runtime.platform.name,
        "python": runtime.python,
        "glibc": f"{runtime.glibc[0]}.{runtime.glibc[1]}" if any(runtime.glibc) else None,
        "gpu": runtime.gpu,
        "runtime": runtime.id,
        "bundle": bundle.id if bundle else None,
        "bundle_name": bundle.name if bundle else None,
        "loses": runtime.platform.loses,
        "bytes": package.bytes_by_part,
    }


def needs(runtime: Runtime) -> str:
    """What a device must have."""
    if runtime.python == OWN:
        return (
            f"a Linux kernel for {runtime.platform.machine}; Python {OWN_PYTHON} and the C library are in it"
        )
    glibc = ".".join(map(str, runtime.glibc))
    return f"Python {runtime.python} for {runtime.platform.machine}, glibc {glibc} or newer"


def _texts(package: Package) -> list[tuple[str, str]]:
    """Installer, uninstaller, what reads them, what describes the package."""
    runtime, bundle = package.runtime, package.bundle
    platform, android = runtime.platform, "yes" if runtime.platform.android else "no"
    loses = "".join(f"\n{textwrap.fill(line, 110)}" for line in platform.loses)
    readme = filled(
        "package_readme.txt",
        platform,
        runtime.python,
        VERSION=own_version(),
        TARGET=platform.name,
        PREFIX=ANDROID_PREFIX if platform.android else "~/.local/share/hypervl-edge",
        NEEDS=needs(runtime),
        MEGABYTES=f"{package.bytes / 1e6:.0f}",
        RUNTIME=runtime.id,
        BUNDLE=f"{bundle.name}, {bundle.id}" if bundle else "none",
        LOSES=f"\nWhat this device does without:\n{loses}\n" if loses else "",
        OWN_DOCS=" and root/usr/share/doc" if runtime.python == OWN else "",
    )
    install = filled(
        "install.sh",
        platform,
        runtime.python if runtime.python != OWN else "",
        TARGET=platform.name,
        KERNELS=" ".join(platform.kernels),
        BITS="32" if platform.machine == "armv7l" else "64",
        GLIBC=".".join(map(str, runtime.glibc)),
        ANDROID=android,
        RUNTIME=runtime.id,
        BUNDLE=bundle.id if bundle else "",
        NAME=bundle.name if bundle else "",
        RUNTIME_KILOBYTES=str((runtime.bytes + _SPARE_BYTES) // 1024),
        BUNDLE_KILOBYTES=str(-(-bundle.bytes // 1024) if bundle else 0),
    )
    return [
        ("README.txt", readme),
        ("install.sh", install),
        ("package.json", json.dumps(description(package), indent=1) + "\n"),
        ("uninstall.sh", filled("uninstall.sh", platform, ANDROID=android)),
        ("watch.service", filled("watch.service", platform)),
    ]
