"""Placements as a page of HTML that needs nothing else: each graph drawn, operators in the colour of their
partition."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from delegates.placement import Placement
from field.whole_page import write_whole
from toolkit.placements import Placements, alike, faulty
from toolkit.report import plain


def write_page(target: Path, found: Placements) -> None:
    """Writes the page of `found` to `target`, whole or not at all."""
    text = (resources.files("toolkit") / "data/placement.html.jinja").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(text)
    data = json.dumps([_drawn(placement) for placement in found.placements], separators=(",", ":"))
    page = template.render(
        name=Path(found.path).name,
        title=found.title,
        warning=found.warning,
        rules=found.rules,
        # Within a script element only "<" could end it.
        data=Markup(data.replace("<", "\\u003c")),
    )
    write_whole(target, page, "--html")


def _drawn(placement: Placement) -> dict[str, Any]:
    """What the page's script reads of it."""
    delegated = [i for i, partition in enumerate(placement.partitions) if partition.is_delegated]
    order = {partition: number for number, partition in enumerate(delegated)}
    rows, columns = _layout(placement)
    operators = [
        {
            "number": operator.number,
            "name": operator.name,
            "output": operator.output,
            "multiply_adds": operator.multiply_adds,
            "partition": order.get(operator.partition, -1),  # of the delegate's
            "refusals": plain(operator.refusals),
            "faults": plain(operator.faults),
            "reads": operator.reads,
            "row": rows[operator.number],
            "column": columns[operator.number],
        }
        for operator in placement.operators
    ]
    groups = [
        {**plain(group), "numbers": group.operators[placement.subgraph], "is_fault": is_fault}
        for is_fault, found in ((True, faulty([placement])), (False, alike([placement])))
        for group in found
    ]
    return {
        "graph": placement.graph,
        "subgraph": placement.subgraph,
        "operators": len(operators),
        "delegated_operators": placement.delegated_operators,
        "delegated_partitions": placement.delegated_partitions,
        "multiply_adds": placement.multiply_adds,
        "delegated_multiply_adds": placement.delegated_multiply_adds,
        "boundary_bytes": placement.boundary_bytes,
        "drawn": operators,
        "alike": groups,
    }


def _layout(placement: Placement) -> tuple[list[int], list[int]]:
    """Row and column of each operator: below all that it reads, near the column of the first of them, where
    its row has room."""
    rows = [0] * len(placement.operators)
    columns = [0] * len(placement.operators)
    used: dict[int, set[int]] = {}
    for operator in placement.operators:  # what one reads stands before it
        before = [number for number in operator.reads if number < operator.number]
        row = 1 + max((rows[number] for number in before), default=-1)
        wanted = columns[before[0]] if before else 0
        taken = used.setdefault(row, set())
        column = min(
            (c for c in range(len(taken) + wanted + 1) if c not in taken), key=lambda c: (abs(c - wanted), c)
        )
        taken.add(column)
        rows[operator.number], columns[operator.number] = row, column
    return rows, columns
