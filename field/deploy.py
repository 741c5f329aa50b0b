"""A bundle, and the runtime that it needs, on a device: only what is missing travels, and all or nothing
changes there."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from field.address import LOCAL
from field.choose import platform_of, python_of
from field.device import Device, DeviceError, quote
from field.installed import Installed, Release, default_prefix, lead_to, read_installed, switch, tidy
from field.machine import Machine
from field.package.launchers import current_launcher
from field.package.package import bundle_id, check_runs_there, has_gpu_graph, safe_name
from field.package.runtime import Runtime, build_runtime, runtime_archive
from field.sync import Item, item, push
from rpi_runtime.bundle import Bundle
from rpi_runtime.errors import ResourceError
from rpi_runtime.manifest import MANIFEST_FILE
from rpi_runtime.memory_plan import AUTO_SHARE

_SPARE_BYTES = 32_000_000  # that a device keeps free: packed weights, logs, somebody's answers


@dataclass(frozen=True)
class Step:
    """What is being done; `total_bytes` is 0 where nothing travels."""

    what: str
    total_bytes: int = 0


@dataclass(frozen=True)
class Part:
    """The runtime, or the bundle."""

    id: str
    name: str
    bytes: int
    sent_bytes: int  # 0 when it was there
    seconds: float


@dataclass(frozen=True)
class Deployed:
    device: str
    platform: str
    prefix: str
    runtime: Part
    bundle: Part
    previous: Release
    switched: bool  # False when all was in use already


def bundle_items(bundle: Bundle) -> list[Item]:
    """The files of a bundle, without what was measured on this machine."""
    manifest = bundle.folder / MANIFEST_FILE
    files = {entry.path: entry for entry in bundle.manifest.files()}
    listed = [Item(e.path, bundle.file(e), e.bytes, e.sha256) for e in files.values()]
    return [*listed, item(manifest, MANIFEST_FILE)]


def memory_left(machine: Machine) -> int:
    """Bytes that a process may hold there, as `--memory auto` would take them."""
    return int(AUTO_SHARE * machine.free_memory_bytes)


def deploy(
    device: Device,
    machine: Machine,
    bundle: Bundle,
    *,
    python: str | None = None,
    prefix: str | None = None,
    cache: Path | None = None,
    on_step: Callable[[Step], None] = lambda step: None,
    on_bytes: Callable[[int], None] = lambda count: None,
) -> Deployed:
    """Puts `bundle` in use on `device`. Nothing is copied when its storage will not do.

    Raises `UsageError` (no runtime for such a machine), `ResourceError` (no room), `DeviceLost` (the same
    call goes on from there) and `DeviceError`. What was in use stays so until all is there, checked, and has
    run.
    """
    platform = platform_of(machine)
    check_runs_there(bundle.folder, platform)
    python = python_of(machine, platform, python)
    on_step(Step(f"runtime for {platform.name}"))
    runtime = build_runtime(platform, python, gpu=has_gpu_graph(bundle.manifest), cache=cache)
    archive = runtime_archive(runtime)
    here = read_installed(device, prefix or default_prefix(machine))
    name = safe_name(bundle.folder.resolve().name)
    wanted = Release(runtime.id, bundle_id(bundle.folder / MANIFEST_FILE), name)
    items = bundle_items(bundle)
    sizes = sum(one.bytes for one in items)
    new_runtime, new_bundle = wanted.runtime not in here.runtimes, wanted.bundle not in here.bundles
    there = _known(device, here) if new_bundle else {}
    missing = sum(one.bytes for one in items if one.sha256 not in there) if new_bundle else 0
    room = (archive.stat().st_size + runtime.bytes) * new_runtime + missing
    if room and machine.free_bytes < room + _SPARE_BYTES:
        raise ResourceError(
            f"{device.address}: {room / 1e6:,.0f} MB are needed in {here.prefix}, and "
            f"{max(0, machine.free_bytes - _SPARE_BYTES) / 1e6:,.0f} MB are free",
            f"Free some space there (toolkit cache --clear --device {device.address}), or choose another "
            "place with --prefix.",
        )
    sent_runtime = Part(runtime.id, platform.name, archive.stat().st_size, 0, 0.0)
    sent_bundle = Part(wanted.bundle, wanted.name, sizes, 0, 0.0)
    if new_runtime:
        sent_runtime = _install(device, here, runtime, archive, sent_runtime, on_step, on_bytes)
    if new_bundle:
        on_step(Step(f"bundle {wanted.name}", sizes))
        before = time.monotonic()
        sent = push(device, items, here.bundle_folder(wanted.bundle), there=there, on_bytes=on_bytes)
        sent_bundle = replace(sent_bundle, sent_bytes=sent.bytes, seconds=time.monotonic() - before)
    changes = wanted != here.current
    if changes:
        on_step(Step("first run"))
        _try(device, here, wanted)
        switch(device, here, wanted, current_launcher(platform))
    else:
        tidy(device, here)
    if here.prefix != machine.prefix and device.address.kind != LOCAL:
        lead_to(device, machine, here.prefix)
    previous = here.current if changes else here.previous
    return Deployed(
        str(device.address),
        platform.name,
        here.prefix,
        sent_runtime,
        sent_bundle,
        previous,
        changes,
    )


def _install(
    device: Device,
    here: Installed,
    runtime: Runtime,
    archive: Path,
    part: Part,
    on_step: Callable[[Step], None],
    on_bytes: Callable[[int], None],
) -> Part:
    on_step(Step("runtime", part.bytes))
    before = time.monotonic()
    incoming = f"{here.prefix}/incoming/{runtime.id}"
    sent = push(device, [item(archive, "runtime.tar.gz")], incoming, on_bytes=on_bytes)
    on_step(Step("unpacking"))
    folder = quote(here.runtime_folder(runtime.id))
    device.run(
        f"""rm -rf {folder}.partial && mkdir -p {folder}.partial || exit 1
gzip -dc <{quote(incoming)}/runtime.tar.gz | (cd {folder}.partial && tar xf -) ||
  {{ rm -rf {folder}.partial; exit 1; }}
sync
mv {folder}.partial/{runtime.id} {folder} && rm -rf {folder}.partial {quote(incoming)}""",
        timeout=None,
    )
    return replace(part, sent_bytes=sent.bytes, seconds=time.monotonic() - before)


def _known(device: Device, here: Installed) -> dict[str, str]:
    """Files of the bundles that are there, by sha256: what their manifests say of them. Their own runtime
    checks the bytes."""
    from rpi_runtime.errors import BundleError
    from rpi_runtime.manifest import from_json

    found: dict[str, str] = {}
    for bundle in here.bundles:
        folder = here.bundle_folder(bundle)
        told = device.run(f"cat {quote(folder)}/{MANIFEST_FILE}", check=False)
        try:
            entries = from_json(told.text).files() if told.code == 0 else ()
        except BundleError:  # of another version of ours
            continue
        found |= {entry.sha256: f"{folder}/{entry.path}" for entry in entries}
    return found


def _try(device: Device, here: Installed, release: Release) -> None:
    """Has the new runtime read the new bundle, before anything depends on them."""
    folder = here.runtime_folder(release.runtime)
    done = device.run(
        f"{quote(folder)}/bin/toolkit inspect {quote(here.bundle_folder(release.bundle))} --json >/dev/null",
        check=False,
        timeout=None,
    )
    if done.code:
        said = done.err.decode(errors="replace").strip()
        raise DeviceError(
            f"{device.address}: the runtime does not work there: {said or f'exit code {done.code}'}",
            "What was in use stays so. `toolkit doctor --device` says what is missing there; "
            "--python own brings a Python and a C library along.",
        )
