"""Where a field test runs on a device: its folder, the Python and the bundle that are in use there."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from field.address import LOCAL
from field.device import Device, DeviceError, quote
from field.machine import Machine, probe
from field.plan import PICTURES, RECORDS_FILE, SUITE_FILE, Order, Plan, order_text
from field.sync import item, push
from field.version import own_version

_ROOT = Path(__file__).resolve().parent.parent  # of this machine's toolkit


@dataclass(frozen=True)
class Place:
    folder: str  # of the run
    python: str  # words of a script
    bundle: str
    bundle_name: str
    runtime: Mapping[str, str]
    machine: Machine

    def runner(self, sent_bytes: int) -> str:
        """A script that runs the test, held by us."""
        return (
            f"cd {quote(self.folder)} || exit 3\nHYPERVL_HELD=1 {self.python} -m field.runner "
            f"{quote(self.folder)} --bundle {quote(self.bundle)} --sent {sent_bytes}"
        )


def find_place(device: Device, run: str, bundle: Path | None) -> Place:
    """`bundle` is that of this machine itself, where nothing is deployed. Raises `DeviceLost`, and
    `DeviceError` for a device without our toolkit."""
    machine = probe(device)
    prefix = "hypervl-edge" if machine.is_android else ".local/share/hypervl-edge"
    folder = f"{machine.place}/{prefix}/field/{run}"
    if device.address.kind == LOCAL:
        return Place(
            folder=folder,
            python=f"PYTHONPATH={quote(str(_ROOT))} {quote(sys.executable)}",
            bundle=str(_own_bundle(bundle)),
            bundle_name=_own_bundle(bundle).name,
            runtime={"id": "", "version": own_version()},
            machine=machine,
        )
    if not machine.runtime_id or not machine.bundle_id:
        missing = "a bundle" if machine.runtime_id else "the toolkit"
        raise DeviceError(
            f"{device.address}: {missing} is not installed there",
            f"toolkit deploy BUNDLE --device {device.address} brings it there.",
        )
    runtime = f"{machine.prefix}/runtimes/{machine.runtime_id}"
    return Place(
        folder=folder,
        python=quote(f"{runtime}/bin/python"),
        bundle=f"{machine.prefix}/bundles/{machine.bundle_id}",
        bundle_name=machine.bundle_name,
        runtime={"id": machine.runtime_id, "version": own_version()},
        machine=machine,
    )


def prepare(device: Device, place: Place, plan: Plan, pictures: Mapping[str, Path], records: bytes) -> None:
    """Brings there what the runner reads. `records` are those that we have: a device whose storage lost some
    of them with its power gets them back."""
    pictures_there = f"{place.folder}/{PICTURES}"
    device.run(f"mkdir -p {quote(place.folder)}")
    # There whole, or not at all.
    if pictures and device.run(f"[ -d {quote(pictures_there)} ]", check=False).code:
        push(device, [item(path, name) for name, path in pictures.items()], pictures_there)
    order = Order(plan, str(device.address), asdict(place.machine), place.bundle_name, place.runtime)
    _put(device, f"{place.folder}/{SUITE_FILE}", order_text(order).encode())
    there = device.run(f"wc -c <{quote(f'{place.folder}/{RECORDS_FILE}')} || echo 0", check=False).text
    if int(there.split()[0]) < len(records):
        _put(device, f"{place.folder}/{RECORDS_FILE}", records)


def clean_up(device: Device, place: Place) -> None:
    device.run(f"rm -rf {quote(place.folder)}", check=False)


def _put(device: Device, path: str, content: bytes) -> None:
    new = quote(f"{path}.new")
    device.run(f"cat >{new} && sync && mv {new} {quote(path)}", stdin=content)


def _own_bundle(bundle: Path | None) -> Path:
    named = bundle or (Path(os.environ["HYPERVL_BUNDLE"]) if os.environ.get("HYPERVL_BUNDLE") else None)
    if named is None:
        raise DeviceError("local: no bundle is named", "Name one of this machine with --bundle.")
    return named.absolute()
