"""The system, its C library, Python, the runtime, and the tools that an installation uses."""

from __future__ import annotations

from collections.abc import Iterator

from delegates.cpu import LSE_ATOMICS
from field.doctor.finding import DEBIAN, FINE, OWN_PYTHON, PROBLEM, WARNING, Finding
from field.doctor.wheels import PACKAGED, RUNTIMES
from field.machine import Machine, Python

# What `toolkit deploy` and a package's install.sh call.
_TOOLS = ("tar", "gzip", "sha256sum", "mv", "mkdir", "cp", "rm", "cat")


def _system(machine: Machine) -> Iterator[Finding]:
    if machine.system != "Linux":
        yield Finding(
            "system",
            PROBLEM,
            machine.system or "not known",
            "Only Linux and Android are served.",
            "Take a board with Linux, or a phone with Android.",
        )
    elif machine.is_android:
        soc = f", {machine.soc}" if machine.soc else ""
        yield Finding(
            "system",
            FINE,
            f"{machine.os} (API {machine.android_api}){soc}, kernel {machine.kernel}",
            f"No root and no app are needed: everything lies in {machine.place} and runs as "
            f"{machine.user or 'the shell'}.",
        )
    else:
        yield Finding("system", FINE, f"{machine.os or 'Linux'}, kernel {machine.kernel}")


def _libc(machine: Machine) -> Iterator[Finding]:
    runtime = RUNTIMES.get(machine.machine)
    if runtime is None:
        return
    needs = ".".join(map(str, runtime.glibc))
    named = " ".join(filter(None, (machine.libc, machine.libc_version)))
    if machine.is_android:
        yield Finding(
            "libc", FINE, "Android's own (bionic)", "No wheel is made for it; a package brings glibc."
        )
    elif machine.libc != "glibc":
        yield Finding(
            "libc",
            WARNING,
            named or "not known",
            f"Wheels of {runtime.package} need glibc {needs}.",
            OWN_PYTHON,
        )
    elif _numbers(machine.libc_version) < runtime.glibc:
        yield Finding(
            "libc", WARNING, named, f"Too old: wheels of {runtime.package} need glibc {needs}.", OWN_PYTHON
        )
    else:
        yield Finding("libc", FINE, named, f"Wheels of {runtime.package} need {needs}.")
        if not machine.library("libstdc++.so.6"):
            yield Finding(
                "libc.libstdc++",
                WARNING,
                "libstdc++.so.6 was not found",
                "Wheels of the runtime and of NumPy link to it.",
                f"{_install(machine, 'libstdc++6')} Or {OWN_PYTHON}",
            )


def _python(machine: Machine) -> Iterator[Finding]:
    runtime = RUNTIMES.get(machine.machine)
    if runtime is None:
        return
    listed = ", ".join(dict.fromkeys(python.version for python in machine.pythons))
    packaged = PACKAGED[machine.machine]
    if machine.is_android or not packaged:
        yield Finding("python", FINE, listed or "none", "A package for it brings its own Python 3.11.")
        return
    usable = next((p for p in machine.pythons if p.minor in packaged and not _lacks(machine, p)), None)
    if usable is not None:
        yield Finding(
            "python", FINE, f"{usable.version}, {usable.executable}", f"{runtime.name} has a wheel."
        )
        return
    if not machine.pythons:
        yield Finding(
            "python", WARNING, "none", "Packages use the device's Python unless they bring one.", OWN_PYTHON
        )
        return
    python = machine.pythons[0]
    if lacks := _lacks(machine, python):
        minimal = "missing" in lacks and machine.os_id in DEBIAN
        yield Finding(
            "python",
            WARNING,
            f"{python.version}, {lacks}",
            "The runtime imports them." if "missing" in lacks else "Wheels for 32 bits do not exist.",
            f"{_install(machine, 'python3')} Or {OWN_PYTHON}" if minimal else OWN_PYTHON,
        )
    elif any(p.minor in runtime.pythons for p in machine.pythons):
        yield Finding(
            "python",
            WARNING,
            listed,
            f"{runtime.name} has a wheel for pip; packages of this toolkit are made for "
            f"{packaged[0]} to {packaged[-1]}.",
            OWN_PYTHON,
        )
    else:
        yield Finding(
            "python",
            WARNING,
            listed,
            f"{runtime.name} has wheels for Python {runtime.pythons[0]} to {runtime.pythons[-1]}.",
            OWN_PYTHON,
        )


def _lacks(machine: Machine, python: Python) -> str:
    if python.missing:
        return f"missing {', '.join(python.missing)}"
    return "32 bits on a 64-bit system" if python.bits == 32 and machine.machine != "armv7l" else ""


def _runtime(machine: Machine) -> Iterator[Finding]:
    """What was deployed comes first; then what each Python can import."""
    wanted = RUNTIMES.get(machine.machine)
    if wanted is None:
        return
    if machine.runtime_id:
        bundle = (
            f", bundle {machine.bundle_name or machine.bundle_id}" if machine.bundle_id else ", no bundle"
        )
        yield Finding("runtime", FINE, f"runtime {machine.runtime_id}{bundle} in {machine.prefix}")
    having = [p for p in machine.pythons if {"ai-edge-litert", "tflite-runtime"} & p.packages.keys()]
    if not having and not machine.runtime_id:
        yield Finding("runtime", FINE, "none yet", f"toolkit deploy brings {wanted.name}.")
    for python in having:
        if "ai-edge-litert" in python.packages:
            yield _litert(machine, python, python.packages["ai-edge-litert"])
        else:
            yield _tflite_runtime(machine, python, python.packages["tflite-runtime"])


def _litert(machine: Machine, python: Python, version: str) -> Finding:
    found = f"ai-edge-litert {version} for {python.executable}"
    checked = RUNTIMES["aarch64"].version
    if version != checked:
        return Finding(
            "runtime.litert",
            WARNING,
            found,
            f"Everything here was checked with {checked}; each version so far changed the cache of packed "
            "weights or what takes how much memory.",
            f"pip install ai-edge-litert=={checked}, or toolkit deploy, which brings it.",
        )
    without_gpu = machine.machine == "aarch64" and LSE_ATOMICS not in machine.cpu_names
    return Finding(
        "runtime.litert",
        FINE,
        found,
        "Its CompiledModel alone would end the process on this CPU (no LSE); toolkit run hides the library "
        "that does. Other programs use its Interpreter."
        if without_gpu
        else "",
    )


def _tflite_runtime(machine: Machine, python: Python, version: str) -> Finding:
    found = f"tflite-runtime {version} for {python.executable}"
    numpy = python.packages.get("numpy", "")
    # Seen with 2.14: it imports, and then Interpreter() raises SystemError.
    if _numbers(numpy) >= (2, 0):
        return Finding(
            "runtime.tflite",
            WARNING,
            f"{found}, with NumPy {numpy}",
            "It was built for NumPy 1: Interpreter() raises SystemError.",
            "pip install 'numpy<2', or toolkit deploy, which brings a NumPy that fits.",
        )
    if machine.machine == "armv7l":
        return Finding("runtime.tflite", FINE, found)
    return Finding(
        "runtime.tflite",
        WARNING,
        found,
        "The last one, of 2023: no cache of packed weights, and wrong for int8 and int4 weights.",
        f"toolkit deploy, which brings {RUNTIMES[machine.machine].name}.",
    )


def _tools(machine: Machine) -> Iterator[Finding]:
    missing = [name for name in _TOOLS if name not in machine.tools]
    if missing:
        yield Finding(
            "tools",
            PROBLEM,
            f"missing: {', '.join(missing)}",
            "An installation uses them.",
            _install(machine, "coreutils tar gzip")
            if machine.os_id in DEBIAN
            else "Install coreutils, tar and gzip, or a BusyBox with them.",
        )
    else:
        yield Finding("tools", FINE, ", ".join(_TOOLS))


def _install(machine: Machine, packages: str) -> str:
    return f"sudo apt install {packages}." if machine.os_id in DEBIAN else f"Install {packages}."


def _numbers(version: str) -> tuple[int, ...]:
    """ "2.36" as (2, 36); what is no number ends it."""
    found: list[int] = []
    for part in version.split("."):
        if not part.isascii() or not part.isdigit():
            break
        found.append(int(part[:9]))
    return tuple(found)


SYSTEM = (_system,)
CHECKS = (_libc, _python, _runtime, _tools)
