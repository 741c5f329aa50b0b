"""Keys of our own, and a configuration with which plain `ssh` reaches a port of 127.0.0.1 with them."""

from __future__ import annotations

import shutil
from pathlib import Path

from emulation import Unavailable, making, run


def key_pair(name: str) -> Path:
    """A private key, without a password, that is made once; the public one lies beside it."""
    if shutil.which("ssh-keygen") is None or shutil.which("ssh") is None:
        raise Unavailable("ssh not found: install OpenSSH's client")
    with making(name) as path:
        if not path.exists():
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "emulated", "-f", str(path)])
        return path


def client_config(folder: Path, port: int, key: Path, host_key: Path, alias: str = "", user: str = "") -> str:
    """For ssh's -F, or to be Included in one's own; it concerns that port of 127.0.0.1 alone, and `alias`.
    Which key the other side must have is written into `folder`."""
    known = folder / f"{alias or 'device'}-known-hosts"
    known.write_text(f"[127.0.0.1]:{port} {host_key.with_suffix('.pub').read_text()}")
    named = f"Host {alias}\n  HostName 127.0.0.1\n  Port {port}\n  User {user}\n" if alias else ""
    return f"""{named}Match host 127.0.0.1 exec "test %p = {port}"
  IdentityFile "{key}"
  IdentitiesOnly yes
  UserKnownHostsFile "{known}"
Match all
"""


def ssh_wrapper(folder: Path, config: Path) -> Path:
    """`folder`, to be put first in PATH: its `ssh` is the one of now, and reads `config` instead of the
    user's. OpenSSH looks for that in the home of the password database, whatever HOME says."""
    ssh = shutil.which("ssh")
    if ssh is None:
        raise Unavailable("ssh not found: install OpenSSH's client")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ssh").write_text(f'#!/bin/sh\nexec {ssh} -F "{config}" "$@"\n')
    (folder / "ssh").chmod(0o755)
    return folder
