"""The small shell scripts that start things on a device. They are POSIX sh, for dash, busybox and mksh."""

from __future__ import annotations

from field.package.lock import DATA
from field.platforms import OWN, OWN_PYTHON, Platform


def python_launcher(platform: Platform, python: str) -> str:
    """`bin/python` of a runtime."""
    start = filled("start_own.sh" if python == OWN else "start_installed.sh", platform, python)
    environment = filled("android_environment.sh", platform, python) if platform.android else ""
    whole = filled("python.sh", platform, python).replace("@START@\n", start)
    return whole.replace("@ENVIRONMENT@\n", environment)


def toolkit_launcher(platform: Platform) -> str:
    """`bin/toolkit` of a runtime."""
    return filled("toolkit.sh", platform)


def current_launcher(platform: Platform) -> str:
    """`bin/toolkit` of PREFIX: that of the runtime which `PREFIX/current` names."""
    return filled("current_toolkit.sh", platform)


def current(runtime: str, bundle: str, name: str) -> str:
    """The text of `PREFIX/current`."""
    return f"runtime={runtime}\nbundle={bundle}\nname={name}\n"


def filled(template: str, platform: Platform, python: str = "", **more: str) -> str:
    """A file of field/data with its @WORDS@ filled in."""
    text = (DATA / template).read_text(encoding="utf-8")
    version = OWN_PYTHON if python == OWN else python
    words = {"SHELL": platform.shell, "LOADER": platform.loader, "PYTHON": version, **more}
    for word, value in words.items():
        text = text.replace(f"@{word}@", value)
    return text
