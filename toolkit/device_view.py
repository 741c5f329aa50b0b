"""Devices and findings about them, at 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from delegates.cpu import DOT_PRODUCT, LSE_ATOMICS
from field.address import LOCAL, Address
from field.doctor import FINE, PROBLEM, WARNING, Finding
from field.doctor.finding import megabytes
from field.machine import Machine
from field.roll_call import Answer
from toolkit import report

_STYLES = {FINE: "green", WARNING: "bold yellow", PROBLEM: "bold red"}
# Short names of what follows from a CPU, by the kernel's names.
_FEATURES = {
    "aarch64": {LSE_ATOMICS: "LSE", DOT_PRODUCT: "dot product", "fphp": "fp16", "i8mm": "i8mm"},
    "armv7l": {"neon": "NEON"},
    "x86_64": {"avx2": "AVX2", "avx_vnni": "AVX-VNNI", "avx512_vnni": "AVX-512 VNNI"},
}


def show_findings(address: Address, machine: Machine, findings: Sequence[Finding]) -> None:
    """What is fine first, so that the rest is what one sees last."""
    _title(machine.model, address)
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for level in (FINE, WARNING, PROBLEM):
        for finding in findings:
            if finding.level == level:
                told = Text(report.printable(finding.found))
                if finding.follows:
                    told.append(f"\n{finding.follows}", "dim")
                table.add_row(Text(level, _STYLES[level]), finding.check, told)
    report.out.print(table)
    wrong = [finding for level in (WARNING, PROBLEM) for finding in findings if finding.level == level]
    if any(finding.remedy for finding in wrong):
        report.out.print("\nWhat to do", style="bold")
    for finding in wrong:
        if finding.remedy:
            # In one line, however long, so that it can be copied.
            line = Text.assemble(
                (f"{finding.check}: ", _STYLES[finding.level]), report.printable(finding.remedy)
            )
            report.out.print(line, soft_wrap=True)
    warnings = sum(finding.level == WARNING for finding in wrong)
    if not any(finding.level == PROBLEM for finding in wrong):
        but = f", with {report.count(warnings, 'warning')}" if warnings else ""
        report.out.print(f"\nThis device can do the job{but}.", style="bold")


def show_devices(answers: Sequence[Answer]) -> None:
    for number, answer in enumerate(answers):
        if number:
            report.out.print()
        if answer.machine is None:
            report.out.print(Text(str(answer.address), "bold"), soft_wrap=True)
            told = answer.error.removeprefix(f"{answer.address}: ")
            report.pairs("", [("not reached", told), *([("remedy", answer.remedy)] if answer.remedy else [])])
        else:
            _title(answer.machine.model, answer.address)
            report.pairs("", _rows(answer, answer.machine))


def _title(name: str, address: Address) -> None:
    where = "this machine" if address.kind == LOCAL else str(address)
    title = Text.assemble((where, "bold"), f"  {report.printable(name)}" if name else "")
    report.out.print(title, soft_wrap=True)


def _rows(answer: Answer, machine: Machine) -> list[tuple[str, object]]:
    cores = report.count(machine.cores, "core") if machine.cores else ""
    swap = f"; {megabytes(machine.swap_bytes)} of swap" if machine.swap_bytes else ""
    limit = (
        f"; {megabytes(machine.container_bytes)} left to its container"
        if machine.container_bytes is not None
        else ""
    )
    free = f"{megabytes(machine.free_bytes)} free of {megabytes(machine.disk_bytes)} at {machine.place}"
    installed = f"{machine.runtime_id}, bundle {machine.bundle_name or machine.bundle_id or 'none'}"
    packages = [
        f"{name} {python.packages[name]} (Python {python.minor})"
        for python in machine.pythons
        for name in ("ai-edge-litert", "tflite-runtime")
        if name in python.packages
    ]
    runtime = ", ".join([*([installed] if machine.runtime_id else []), *packages])
    apps = f"; for apps alone: {', '.join(answer.for_apps)}" if answer.for_apps else ""
    sensors = sorted(machine.temperatures_c.items(), key=lambda pair: -pair[1])
    shown = ", ".join(f"{zone} {c:.0f} °C" for zone, c in sensors[:4])
    more = f" and {len(sensors) - 4} more" if len(sensors) > 4 else ""
    return [
        ("cpu", ", ".join(filter(None, (machine.cpu_model, cores, machine.machine)))),
        ("features", _features(machine)),
        (
            "memory",
            f"{megabytes(machine.available_bytes)} free of {megabytes(machine.memory_bytes)}{swap}{limit}",
        ),
        ("storage", free),
        ("system", ", ".join(filter(None, (machine.os, f"kernel {machine.kernel}")))),
        ("python", ", ".join(dict.fromkeys(python.version for python in machine.pythons)) or "none"),
        ("runtime", runtime or "none yet"),
        ("delegates", f"{', '.join(answer.delegates)}{apps}"),
        ("temperature", f"{shown}{more}" or "no sensor"),
    ]


def _features(machine: Machine) -> str:
    known = _FEATURES.get(machine.machine, {})
    if not machine.cpu_names or not known:
        return "not told"
    having = [title for name, title in known.items() if name in machine.cpu_names]
    missing = [title for name, title in known.items() if name not in machine.cpu_names]
    lacks = ", ".join(f"no {title}" for title in missing) if machine.machine == "aarch64" else ""
    return "; ".join(filter(None, (", ".join(having), lacks))) or "none of note"
