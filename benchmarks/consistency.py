"""What each term of dual consistency is worth: four trainings of the base branch, from one checkpoint.

Without either, with the KL divergence alone, with the distance of visual tokens alone, and with both; the
same seed, so the same panels in the same order, and the same steps. The base branch begins each time as every
other layer of the large one. Then all are asked the same questions about test panels, beside the large branch
that they stand in for. Stopped, it goes on.

    python -m benchmarks.consistency CHECKPOINT -o FOLDER [--scale 0.5] [--seed 0] [--questions 400]

`--scale` is of the steps of `toolkit train dcl`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.command import toolkit
from benchmarks.reference_model import FULL, Arm, Bench
from hypervl.checkpoint import Checkpoint, save
from hypervl.training.consistency import CONSISTENCIES
from hypervl.training.stages import begin_base_branch


def begin(bench: Bench) -> Path:
    """The checkpoint with its base branch begun anew."""
    start = bench.folder / "start"
    if not start.exists():
        opened = Checkpoint.open(bench.checkpoint)
        model = opened.load_model()
        begin_base_branch(model)
        save(model.eval(), start, opened.text_files, dtype="float16")
    return start


def train(bench: Bench, start: Path, scale: float, seed: int) -> dict[str, Path]:
    made = {}
    for name in CONSISTENCIES:
        made[name] = bench.folder / f"dcl-{name}"
        if not made[name].exists():
            options: list[object] = ["--consistency", name, "--scale", scale, "--seed", seed]
            toolkit("train", "dcl", start, "-o", made[name], *options)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--scale", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--questions", type=int, default=400)
    given = parser.parse_args()
    bench = Bench(given.checkpoint, given.output, given.questions)
    start = begin(bench)
    trained = train(bench, start, given.scale, given.seed)
    arms = bench.ask([start], [FULL], ["large", "base"])
    large = arms[f"{start.name} {FULL} large"]
    found = {"before": arms[f"{start.name} {FULL} base"]}
    for term, checkpoint in trained.items():
        found[term] = bench.ask([checkpoint], [FULL], ["base"])[f"{checkpoint.name} {FULL} base"]
    _print({"large branch": large, **found}, large)


def _print(arms: dict[str, Arm], large: Arm) -> None:
    table = Table("consistency", "exact", "95 %", "of the large branch's")
    for name, arm in arms.items():
        of_large = arm.accuracy / large.accuracy
        table.add_row(name, f"{arm.accuracy:.1%}", f"{arm.low:.1%} to {arm.high:.1%}", f"{of_large:.1%}")
    Console().print(table)


if __name__ == "__main__":
    main()
