"""What is installed on a device: runtimes and bundles that never change once they are there, and which are in
use.

    PREFIX/runtimes/<id>/   PREFIX/bundles/<id>/   PREFIX/current   PREFIX/previous   PREFIX/bin/toolkit

`current` is a small text file that names a runtime and a bundle: renaming another one over it switches both
at once, on any file system. `previous` is the one before, for a rollback.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from field.device import Device, DeviceError, quote
from field.machine import Machine
from field.package.launchers import current
from field.platforms import ANDROID_PREFIX

HOME_PREFIX = ".local/share/hypervl-edge"
WATCH_UNIT = "hypervl-edge-watch.service"  # of install.sh


@dataclass(frozen=True)
class Release:
    """What is in use together; "" where there is none."""

    runtime: str = ""
    bundle: str = ""
    name: str = ""  # of the bundle, as `safe_name` has it


@dataclass(frozen=True)
class Installed:
    prefix: str
    current: Release
    previous: Release
    runtimes: tuple[str, ...]
    bundles: tuple[str, ...]

    @property
    def toolkit(self) -> str:
        """The command, of the runtime in use."""
        return f"{self.runtime_folder(self.current.runtime)}/bin/toolkit"

    @property
    def python(self) -> str:
        return f"{self.runtime_folder(self.current.runtime)}/bin/python"

    def runtime_folder(self, runtime: str) -> str:
        return f"{self.prefix}/runtimes/{runtime}"

    def bundle_folder(self, bundle: str) -> str:
        return f"{self.prefix}/bundles/{bundle}"


def default_prefix(machine: Machine) -> str:
    return ANDROID_PREFIX if machine.is_android else f"{machine.home}/{HOME_PREFIX}"


def read_installed(device: Device, prefix: str) -> Installed:
    """Raises `DeviceLost`."""
    at = quote(prefix)
    script = f"""cd {at} 2>/dev/null || exit 0
for file in current previous; do echo "@$file"; cat $file 2>/dev/null; done
for folder in runtimes bundles; do
  echo "@$folder"
  for one in $folder/*; do case $one in *.partial) ;; *) [ -d "$one" ] && echo "${{one##*/}}" ;; esac; done
done"""
    sections: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in device.run(script, check=False).text.splitlines():
        if line.startswith("@"):
            lines = sections.setdefault(line[1:], [])
        else:
            lines.append(line)
    return Installed(
        prefix,
        _release(sections.get("current", [])),
        _release(sections.get("previous", [])),
        tuple(sections.get("runtimes", [])),
        tuple(sections.get("bundles", [])),
    )


def _release(lines: list[str]) -> Release:
    """A file that somebody edited names nothing that is no id."""
    found = dict(line.split("=", 1) for line in lines if "=" in line)
    ids = [found.get(key, "") for key in ("runtime", "bundle")]
    runtime, bundle = (one if re.fullmatch(r"[A-Za-z0-9._-]+", one) else "" for one in ids)
    return Release(runtime, bundle, found.get("name", ""))


def switch(device: Device, here: Installed, to: Release, launcher: str) -> None:
    """Puts `to` in use; what was becomes `previous`, and everything else goes. `launcher` is the text of
    `bin/toolkit`."""
    keep = {to.runtime, to.bundle, here.current.runtime, here.current.bundle} - {""}
    device.run(
        f"""cd {quote(here.prefix)} && mkdir -p bin || exit 1
cat >bin/toolkit.new && chmod 755 bin/toolkit.new && mv bin/toolkit.new bin/toolkit || exit 1
printf %s {quote(current(to.runtime, to.bundle, to.name))} >current.new || exit 1
if [ -f current ]; then cp current previous.new && mv previous.new previous || exit 1; fi
sync
mv current.new current || exit 1
{_removed(keep)}
# A service that watches a folder goes on with what is in use now.
systemctl --user try-restart {WATCH_UNIT} 2>/dev/null
exit 0""",
        stdin=launcher.encode(),
    )


def tidy(device: Device, here: Installed) -> None:
    """Removes what is neither in use nor kept for a rollback, as of a deployment that was not finished."""
    keep = {part for one in (here.current, here.previous) for part in (one.runtime, one.bundle)} - {""}
    if {*here.runtimes, *here.bundles} - keep:
        device.run(f"cd {quote(here.prefix)} || exit 1\n{_removed(keep)}")


def _removed(keep: set[str]) -> str:
    return f"""for one in runtimes/* bundles/* data/*; do
  case " {" ".join(sorted(keep))} " in *" ${{one##*/}} "*) ;; *) rm -rf "$one" ;; esac
done
rm -rf incoming work"""


def lead_to(device: Device, machine: Machine, prefix: str) -> None:
    """Has `probe` find an installation that is not where it looks."""
    at = default_prefix(machine)
    if prefix == at:
        device.run(f"rm -f {quote(at)}/elsewhere")
    else:
        device.run(f"mkdir -p {quote(at)} && cd {quote(prefix)} && pwd >{quote(at)}/elsewhere")


def roll_back(device: Device, here: Installed) -> Release:
    """Puts back what was in use before; the two change places. Raises `DeviceError` when there is none."""
    if not here.previous.runtime:
        raise DeviceError(
            f"{device.address}: nothing was installed before what is there now",
            "A rollback needs two deployments.",
        )
    device.run(
        f"""cd {quote(here.prefix)} || exit 1
cp current current.old && cp previous previous.old && sync || exit 1
mv previous.old current && mv current.old previous || exit 1
systemctl --user try-restart {WATCH_UNIT} 2>/dev/null
exit 0"""
    )
    return here.previous
