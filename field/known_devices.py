"""The devices that something was deployed to, so that `toolkit devices` finds them again."""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from field.address import ADB, LOCAL, Address, parse_address
from rpi_runtime.errors import UsageError

_MOST = 32  # the latest


def state_file() -> Path:
    state = os.environ.get("XDG_STATE_HOME", "")
    # The specification has relative ones ignored.
    folder = Path(state) if Path(state).is_absolute() else Path.home() / ".local" / "state"
    return folder / "hypervl-edge" / "devices.json"


def known() -> tuple[Address, ...]:
    """The latest first; none where there is no such file, or one that cannot be read."""
    try:
        listed = json.loads(state_file().read_text(encoding="utf-8"))["devices"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ()
    found: dict[str, Address] = {}
    for text in listed if isinstance(listed, list) else ():
        with suppress(UsageError):
            address = parse_address(str(text))
            found.setdefault(str(address), address)
    return tuple(found.values())


def remember(address: Address) -> None:
    """Puts it first. This machine needs no remembering, nor does "the only one" of adb; and a home that
    cannot be written to is no reason to fail."""
    if address.kind == LOCAL or (address.kind == ADB and not address.serial):
        return
    listed = [str(address), *(str(other) for other in known() if other != address)][:_MOST]
    file = state_file()
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        # Written beside it, then moved: a reader sees the old list or the new one.
        with tempfile.NamedTemporaryFile("w", dir=file.parent, encoding="utf-8", delete=False) as part:
            json.dump({"devices": listed}, part, indent=2)
        try:
            Path(part.name).replace(file)
        except OSError:
            Path(part.name).unlink(missing_ok=True)
            raise
