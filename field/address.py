"""Where a device is: `ssh://user@host:port`, `adb://serial`, `local`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rpi_runtime.errors import UsageError

SSH, ADB, LOCAL = "ssh", "adb", "local"
_SSH = re.compile(
    r"(?:(?P<user>[^@/:\s]+)@)?(?P<host>\[[0-9A-Fa-f:.%\w]+\]|[^@/:\s\[\]]+)(?::(?P<port>\d+))?/?"
)
_REMEDY = "Write ssh://user@host, ssh://user@host:2222, adb://, adb://<serial> or local."


@dataclass(frozen=True)
class Address:
    kind: str  # SSH, ADB or LOCAL
    host: str = ""  # of ssh: a name, an address, or a Host of the user's ssh configuration
    user: str = ""  # of ssh; "" leaves it to the user's configuration
    port: int | None = None  # of ssh; None leaves it to the user's configuration
    serial: str = ""  # of adb; "" is the only one there is

    def __str__(self) -> str:
        if self.kind == ADB:
            return f"adb://{self.serial}"
        if self.kind == LOCAL:
            return LOCAL
        host = f"[{self.host}]" if ":" in self.host else self.host
        user, port = f"{self.user}@" if self.user else "", f":{self.port}" if self.port else ""
        return f"ssh://{user}{host}{port}"


def parse_address(text: str) -> Address:
    """Raises `UsageError`. No part may look like an option of ssh's or adb's."""
    given = text.strip()
    kind, mark, rest = given.partition("://")
    if given == LOCAL:
        return Address(LOCAL)
    if mark and kind == ADB and not re.search(r"\s", rest) and not rest.startswith("-"):
        return Address(ADB, serial=rest.rstrip("/"))
    user = rest.rpartition("@")[0]
    if mark and kind == SSH and ":" in user:  # the rest is not told: it may be a secret
        raise UsageError(
            f"device ssh://{user.partition(':')[0]}:...: an address has no password",
            "Leave it out; ssh asks for it, or takes your key: ssh-copy-id.",
        )
    found = _SSH.fullmatch(rest) if mark and kind == SSH else None
    if found is None or any((found[part] or "").startswith("-") for part in ("user", "host")):
        raise UsageError(f"device {text!r} is no address", _REMEDY)
    port = int(found["port"]) if found["port"] else None
    if port is not None and not 1 <= port <= 65535:
        raise UsageError(f"device {text!r}: the port is {port}", "It must be from 1 to 65535.")
    return Address(SSH, host=found["host"].strip("[]"), user=found["user"] or "", port=port)
