"""How fast bundles decode and prefill, side by side, and what they keep in memory.

Each bundle is opened in a process of its own. Its KV cache is filled with data before anything is timed:
untouched pages are read for free and do not count as resident. Rounds alternate between the bundles, so that
a busy machine slows all of them; the table has the median round, and decoding as a ratio to the first bundle.

    python -m benchmarks.decoding BUNDLE... [--rounds 7] [--steps 16] [--threads 2]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from rpi_runtime.decoder import Decoder
from rpi_runtime.embedding import PromptRows
from rpi_runtime.kernel import Memory, memory
from rpi_runtime.manifest import DecoderSpec
from rpi_runtime.prompt import TokenRun
from rpi_runtime.session import Session


@dataclass(frozen=True)
class Setup:
    bundle: Path
    steps: int  # decoded tokens per round
    threads: int


@dataclass(frozen=True)
class Opened:
    context_tokens: int
    memory: Memory  # before the first token


@dataclass(frozen=True)
class Round:
    decode_tokens_per_s: float  # the last `steps` of the context
    prefill_tokens_per_s: float  # one call of the largest signature, just before them
    memory: Memory


def serve(setup: Setup, pipe: Connection) -> None:
    """The process of one bundle: says that it is open, then runs a round per message until one is False."""
    with Session.open(setup.bundle, threads=setup.threads) as session:
        decoder, spec = session.decoder, session.manifest.decoder
        assert spec is not None
        prefill = spec.prefill_tokens[-1]
        if prefill + setup.steps >= spec.context_tokens:
            raise ValueError(f"{setup.bundle}: {prefill} + {setup.steps} tokens do not fit its context")
        decoder.step(1)  # opens the signature
        pipe.send(Opened(spec.context_tokens, memory()))
        decoder.kv.keep(0)
        fill(decoder, spec, spec.context_tokens - setup.steps - prefill - 1)
        while pipe.recv():
            pipe.send(one_round(decoder, prefill, setup.steps))


def fill(decoder: Decoder, spec: DecoderSpec, tokens: int) -> None:
    random = np.random.default_rng(0)
    shape = (1, spec.kv_heads, tokens, spec.head_dim)
    slices = {
        f"{part}_{i}": random.standard_normal(shape, np.float32) for i in range(spec.layers) for part in "kv"
    }
    decoder.kv.append(slices, [0] * tokens)


def one_round(decoder: Decoder, prefill: int, steps: int) -> Round:
    filled = decoder.kv.tokens
    ids = tuple(range(2, 3 + prefill))  # one more, which `prefill` feeds by itself for its logits
    started = time.perf_counter()
    decoder.prefill(PromptRows([TokenRun(ids)], decoder.table, lambda run: np.empty(0)))
    middle = time.perf_counter()
    for token in range(steps):
        decoder.step(token)
    ended = time.perf_counter()
    decoder.kv.keep(filled)
    step_s = (ended - middle) / steps
    return Round(1 / step_s, prefill / (middle - started - step_s), memory())


def measure(setups: list[Setup], rounds: int) -> list[tuple[Opened, list[Round]]]:
    context = get_context("spawn")
    pipes, processes = [], []
    for setup in setups:
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(setup, theirs), daemon=True)
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    results: list[tuple[Opened, list[Round]]] = [(pipe.recv(), []) for pipe in pipes]
    for number in range(rounds + 1):
        for pipe, (_, found) in zip(pipes, results, strict=True):
            pipe.send(True)
            one = pipe.recv()
            if number:  # the first one warms up
                found.append(one)
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(False)
        process.join()
    return results


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=16, help="tokens per round")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    results = measure([Setup(b, options.steps, options.threads) for b in options.bundles], options.rounds)
    table = Table(
        title=f"{options.threads} threads, load {load:.1f} on {os.cpu_count()} CPUs", show_edge=False
    )
    for heading in (
        "bundle",
        "context",
        "decode t/s",
        "ratio",
        "prefill t/s",
        "anon MB",
        "KV full",
        "mapped MB",
    ):
        table.add_column(heading, justify="left" if heading == "bundle" else "right")
    first = 0.0
    for bundle, (opened, rounds) in zip(options.bundles, results, strict=True):
        decode = statistics.median(r.decode_tokens_per_s for r in rounds)
        first = first or decode
        table.add_row(
            bundle.name,
            str(opened.context_tokens),
            f"{decode:.1f}",
            f"{decode / first:.2f}",
            f"{statistics.median(r.prefill_tokens_per_s for r in rounds):.0f}",
            f"{opened.memory.anonymous_bytes / 1e6:.0f}",
            f"{rounds[-1].memory.anonymous_bytes / 1e6:.0f}",
            f"{rounds[-1].memory.mapped_bytes / 1e6:.0f}",
        )
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
