"""Options that several commands share, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

# On a device, where it was deployed, bin/toolkit names the bundle in use.
Bundle = Annotated[
    Path,
    typer.Argument(
        help="Bundle folder that `toolkit convert` wrote.",
        show_default=False,
        envvar="HYPERVL_BUNDLE",
        show_envvar=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text and tables.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show the log lines of the native libraries.")]

Images = Annotated[
    list[Path] | None,
    typer.Option("--image", help="Picture to look at; repeatable.", show_default=False),
]
System = Annotated[str | None, typer.Option(help="System message.", show_default=False)]
Route = Annotated[str, typer.Option(help="What the resolution is chosen for: tile, image or fixed:<scale>.")]
Branch = Annotated[str, typer.Option(help="Vision branch: base, large or auto.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Stop after this many tokens.")]
Temperature = Annotated[float, typer.Option(help="0 takes the most likely token.")]
TopK = Annotated[int, typer.Option(help="Sample among this many tokens; 0 is all.")]
TopP = Annotated[float, typer.Option(help="Sample among the likeliest tokens that reach this share.")]
MinP = Annotated[float, typer.Option(help="Leave out tokens below this share of the likeliest one.")]
RepetitionPenalty = Annotated[float, typer.Option(help="Above 1 makes tokens that occurred less likely.")]
Seed = Annotated[int | None, typer.Option(help="Same seed, same answer.", show_default=False)]
Stop = Annotated[
    list[str] | None, typer.Option(help="Stop before this text; repeatable.", show_default=False)
]
Threads = Annotated[int | None, typer.Option(help="Threads.", show_default="the cores, at most 4")]
Backend = Annotated[str, typer.Option(help="auto, compiled, interpreter, tflite-runtime or tensorflow.")]
WeightCache = Annotated[bool, typer.Option(help="Keep packed weights in a file for the next start.")]
Delegate = Annotated[
    str,
    typer.Option(
        help="What graphs run on: auto (what the bundle was made for), cpu, gpu, npu, or external:<path.so>."
    ),
]
FullDelegation = Annotated[
    bool,
    typer.Option("--require-full-delegation", help="Leave with 1 when the CPU would run any operator."),
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict",
        help="Have the kernel refuse memory beyond --memory and what threads reserve (58 MB with two).",
    ),
]
StreamWeights = Annotated[
    bool,
    typer.Option(
        "--stream-weights", help="Where --memory is too small, read weights from storage again and again."
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(help="What this process may hold at most, like 512MB, or auto.", show_default="no budget"),
]
# `toolkit.on_device` acts on it, before the command does.
Device = Annotated[
    str | None,
    typer.Option(
        help="Run there, where it was deployed: ssh://user@host[:port] or adb://[serial].",
        show_default="here",
    ),
]
