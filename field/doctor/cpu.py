"""The processor: which runtime exists for it, and which instructions its kernels may use.

What XNNPACK has kernels for was read in ai-edge-litert 2.3.0's aarch64 wheel (the names of its sources in
libpywrap_litert_common.so); which it takes it decides by /proc/cpuinfo, when it is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator

from delegates.cpu import DOT_PRODUCT, gpu_library_loads_here
from field.doctor.finding import FINE, PROBLEM, WARNING, Finding
from field.doctor.wheels import RUNTIMES
from field.machine import Machine

# That every CPU of the kind has: a /proc/cpuinfo without it is not of this CPU.
_BASELINE = {"aarch64": "asimd", "x86_64": "sse2", "armv7l": "neon"}
_VNNI = ("avx512_vnni", "avx_vnni")


def _processor(machine: Machine) -> Iterator[Finding]:
    named = ", ".join(
        filter(None, (machine.cpu_model, f"{machine.cores} cores" if machine.cores else "", machine.machine))
    )
    if machine.machine not in RUNTIMES:
        newer = machine.machine.startswith("armv")
        yield Finding(
            "cpu",
            PROBLEM,
            named or "not known",
            f"No TFLite runtime is built for {machine.machine or 'it'}.",
            "Take a Raspberry Pi Zero 2 W, 3, 4 or 5."
            if newer
            else "Take a device with an aarch64 or x86-64 CPU.",
        )
    elif machine.machine == "armv7l":
        wide = machine.kernel_machine in ("aarch64", "arm64")
        yield Finding(
            "cpu",
            WARNING,
            f"{named}: a 32-bit system{' on a 64-bit kernel' if wide else ''}",
            "LiteRT has no 32-bit build: tflite-runtime 2.14 (2023) runs the graphs. No CompiledModel, so no "
            "cache of packed weights, a copy of them per signature, and no GPU. It computes the default int8 "
            "and int4 recipes wrongly, so they are refused: convert with fp16, or the decoder with "
            "int4-channel, vision and vrc with w8a8.",
            "Install the 64-bit Raspberry Pi OS; any Pi from Zero 2 W and 3 on runs it."
            if wide or "Raspberry" in machine.model
            else "Install a 64-bit system, if the CPU has one.",
        )
    else:
        yield Finding("cpu", FINE, named)


def _features(machine: Machine) -> Iterator[Finding]:
    """On a CPU that we know."""
    baseline = _BASELINE.get(machine.machine)
    if baseline is None:
        return
    if baseline not in machine.cpu_names:
        told = "of another CPU" if machine.cpu_names else "missing, or without features"
        yield Finding(
            "cpu.features",
            WARNING,
            f"/proc/cpuinfo is {told}",
            "XNNPACK switches itself off quietly, and graphs run on TFLite's own kernels, which are slower.",
            "Let programs read this machine's own /proc/cpuinfo (is it a container, or an emulator?).",
        )
    elif machine.machine == "aarch64":
        yield from _arm(machine)
    elif machine.machine == "x86_64":
        found = [name for name in _VNNI if name in machine.cpu_names]
        yield Finding(
            "cpu.dot",
            FINE,
            ", ".join(found) if found else "no VNNI",
            "int8 products four at a time." if found else "int8 products without VNNI, in more instructions.",
        )


def _arm(machine: Machine) -> Iterator[Finding]:
    # Seen: FATAL ERROR "compiled with lse enabled", exit 132, with ai-edge-litert 2.1.2 to 2.3.0.
    lse = gpu_library_loads_here(machine.cpu).loads
    yield Finding(
        "cpu.lse",
        FINE,
        "LSE atomics" if lse else "no LSE atomics",
        ""
        if lse
        else "LiteRT's GPU library would end the process (exit 132): it is left out. The CPU path is "
        "the same without it.",
    )
    dot = DOT_PRODUCT in machine.cpu_names
    yield Finding(
        "cpu.dot",
        FINE,
        "dot product" if dot else "no dot product",
        "XNNPACK multiplies int8 and int4 weights four products at a time."
        if dot
        else "XNNPACK multiplies int8 and int4 weights with plain NEON, in more instructions.",
    )
    matrix = "i8mm" in machine.cpu_names
    yield Finding(
        "cpu.i8mm",
        FINE,
        "int8 matrix multiply" if matrix else "no int8 matrix multiply",
        "XNNPACK multiplies int8 and int4 weights in blocks of a matrix." if matrix else "",
    )
    half = {"fphp", "asimdhp"} <= set(machine.cpu_names)
    yield Finding(
        "cpu.fp16",
        FINE,
        "fp16 arithmetic" if half else "no fp16 arithmetic",
        "Graphs of this toolkit compute in float32 and int8 on a CPU, so they do not depend on it.",
    )


CHECKS = (_processor, _features)
