"""Rows of the page's tables, as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from field.plan import RECORDS_FILE
from field.report import values
from field.report.figures import Figures, Spread
from field.report.runs import DeviceRun
from field.report.words import (
    NONE,
    counted,
    decimal,
    duration,
    gigabytes,
    interval,
    megabytes,
    milliseconds,
    moment,
    percent,
)
from vqa.intervals import Share

MOST_COLUMNS = 6  # of one table, as many as a printed page has room for
_FEATURES = (
    "asimd", "neon", "asimddp", "i8mm", "sve", "sve2", "bf16", "fphp", "asimdhp",
    "avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8",
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    text: str
    note: str = ""
    is_bad: bool = False


@dataclass(frozen=True)
class Row:
    name: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Section:
    name: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Column:
    device: str
    variant: str
    options: str


@dataclass(frozen=True)
class Table:
    columns: tuple[Column, ...]
    sections: tuple[Section, ...]


@dataclass(frozen=True)
class Fact:
    name: str
    text: str


def device_facts(device: DeviceRun) -> tuple[Fact, ...]:
    """What is known of it, and was asked for: nothing of users, folders or networks."""
    machine, bundle, runtime = device.machine, device.bundle, device.runtime
    names = machine.get("cpu_names")
    features = [f for f in _FEATURES if isinstance(names, list) and f in names]
    libc = f"{values.text(machine, 'libc')} {values.text(machine, 'libc_version')}".strip()
    memory, swap = values.count(machine, "memory_bytes"), values.count(machine, "swap_bytes")
    cores = values.count(machine, "cores")
    began, ended = moment(device.began), moment(device.ended)
    lines = f"{sum(map(len, (device.answers, device.failures, device.samples, device.events))):,} records"
    lines += f", {device.unreadable:,} unreadable" if device.unreadable else ""
    lines += f", {device.unknown:,} of unknown kinds" if device.unknown else ""
    found = (
        ("model", values.text(machine, "model") or values.text(machine, "soc")),
        ("system", _joined(values.text(machine, "os"), libc)),
        ("kernel", f"{values.text(machine, 'kernel')} {values.text(machine, 'machine')}".strip()),
        ("CPU", _joined(values.text(machine, "cpu_model"), counted(cores, "core") if cores else "")),
        ("CPU features", " ".join(features)),
        ("memory", _joined(gigabytes(memory), f"{gigabytes(swap)} swap" if swap else "") if memory else ""),
        ("runtime", f"{values.text(runtime, 'version')} {_id(values.text(runtime, 'id'))}".strip()),
        ("bundle", f"{values.text(bundle, 'name')} {_id(values.text(bundle, 'id'))}".strip()),
        ("tested", f"{began} to {ended} UTC" if began else ""),
        ("ran for", duration(device.ran_s) + ("" if device.is_done else ", not done")),
        ("its clock", _clock(values.number(machine, "clock_s"))),
        ("raw data", f"{device.folder}/{RECORDS_FILE}, {lines}"),
    )
    return tuple(Fact(name, text) for name, text in found if text)


def comparison_tables(figures: Sequence[Figures]) -> list[Table]:
    """All variants on all devices side by side, `MOST_COLUMNS` to a table."""
    return [_table(figures[i : i + MOST_COLUMNS]) for i in range(0, len(figures), MOST_COLUMNS)]


def _id(identity: str) -> str:
    return f"({identity[:16]})" if identity else ""


def _clock(ahead_s: float | None) -> str:
    if ahead_s is None or abs(ahead_s) < 60:
        return ""
    return f"{duration(abs(ahead_s))} {'ahead of' if ahead_s > 0 else 'behind'} the host's"


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _table(figures: Sequence[Figures]) -> Table:
    def row(name: str, read: Callable[[Figures], Cell]) -> Row:
        return Row(name, tuple(read(one) for one in figures))

    sensors = sorted({power.sensor for one in figures for power in one.power})
    sections = (
        Section("Answers", (
            row("answers", lambda f: Cell(f"{f.answers:,}", _judged(f))),
            row("right, exactly", lambda f: _share(f.exact)),
            row("right, numerically", lambda f: _share(f.numeric)),
        )),
        Section("Time", (
            row("first token", lambda f: _times(f.first_token)),
            row("whole answer", lambda f: _times(f.answer)),
            row("decode speed", lambda f: Cell(decimal(f.decode_tokens_per_s, "tokens/s"))),
        )),
        Section("Tokens", (
            row("new, per answer", lambda f: Cell(decimal(f.new_tokens))),
            row("visual, per picture", _visual_tokens),
        )),
        Section("Memory", (
            row("peak resident", _peak),
            row("budget", _budget),
        )),
        Section("Heat and power", (
            row("hottest", lambda f: Cell(decimal(f.hottest_c, "°C"), f.hottest_zone)),
            row("clock", lambda f: Cell(_mhz(f))),
            row("throttling", _throttling),
            *(row(f"power, {sensor}", _power(sensor)) for sensor in sensors),
        )),
        Section("Trouble", (
            row("errors", _errors),
            row("restarts", lambda f: Cell(f"{f.restarts:,}", is_bad=bool(f.restarts))),
        )),
    )  # fmt: skip
    return Table(
        tuple(Column(f.device, f.variant.name, _options(f)) for f in figures),
        tuple(s for s in map(_without_empty, sections) if s.rows),
    )


def _without_empty(section: Section) -> Section:
    """Without rows in which nobody has anything."""
    return Section(section.name, tuple(r for r in section.rows if any(c.text != NONE for c in r.cells)))


def _options(figures: Figures) -> str:
    variant = figures.variant
    threads = counted(variant.threads, "thread") if variant.threads else ""
    delegate = "" if variant.delegate in ("", "auto") else f"delegate {variant.delegate}"
    return ", ".join(part for part in (variant.route, variant.branch, delegate, threads) if part)


def _judged(figures: Figures) -> str:
    if not figures.answers:
        return ""
    if not figures.judged:
        return "no expected answers"
    if figures.judged != figures.questions:
        return f"{figures.judged:,} judged, to {counted(figures.questions, 'question')}"
    return f"{figures.judged:,} judged"


def _times(found: Spread | None) -> Cell:
    if found is None:
        return Cell(NONE)
    return Cell(
        milliseconds(found.median),
        f"95 % within {milliseconds(found.p95)}, at most {milliseconds(found.most)}",
    )


def _share(share: Share | None) -> Cell:
    return Cell(NONE) if share is None else Cell(percent(share.value), interval(share))


def _visual_tokens(figures: Figures) -> Cell:
    note = f"{percent(figures.saved)} saved" if figures.saved else ""
    return Cell(decimal(figures.visual_tokens, digits=0), note)


def _peak(figures: Figures) -> Cell:
    peak, budget, note = figures.peak_resident_bytes, figures.budget_bytes, ""
    if budget is not None and figures.is_over_budget:
        note = f"{megabytes(peak - budget)} over its budget"
    elif budget and peak:
        note = f"{percent(peak / budget)} of its budget"
    return Cell(megabytes(peak), note, figures.is_over_budget)


def _budget(figures: Figures) -> Cell:
    if figures.budget_bytes:
        return Cell(megabytes(figures.budget_bytes))
    return Cell(figures.variant.memory or "none")


def _throttling(figures: Figures) -> Cell:
    if figures.throttled is None:
        return Cell(NONE)
    return Cell(", ".join(figures.throttled) or "none seen", is_bad=bool(figures.throttled))


def _errors(figures: Figures) -> Cell:
    note = f"{figures.given_up:,} given up" if figures.given_up else ""
    return Cell(f"{figures.errors:,}", note, bool(figures.errors))


def _mhz(figures: Figures) -> str:
    slowest, fastest = figures.slowest_mhz, figures.fastest_mhz
    if slowest is None or fastest is None:
        return NONE
    return f"{slowest:,.0f} MHz" if slowest == fastest else f"{slowest:,.0f} to {fastest:,.0f} MHz"


def _power(sensor: str) -> Callable[[Figures], Cell]:
    def read(figures: Figures) -> Cell:
        for one in figures.power:
            if one.sensor == sensor:
                energy = one.mwh_per_answer
                note = "" if energy is None else f"{energy:.3g} mWh per answer"
                return Cell(f"{one.mean_watts:.2f} W", note)
        return Cell(NONE)

    return read
