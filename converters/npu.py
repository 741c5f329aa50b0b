"""Compiles a graph ahead of time for the NPU of one SoC, with LiteRT's compiler plugins.

The work is done by `apply_plugin_main` of ai-edge-litert, a process of its own: a plugin that crashes ends
nothing else. It is what `ai_edge_litert.aot` runs, too. Only the wheel for x86-64 Linux has it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import re
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from converters.cache_order import drop_stale_order
from delegates.npu import JUDGED, ON_CPU, VENDORS, Vendor, verdicts
from delegates.targets import DISPATCH
from rpi_runtime.errors import BundleError, CheckFailed, EdgeError, ResourceError
from rpi_runtime.targets import parse_target
from rpi_runtime.tflite_file import read

_TOOL = "tools/apply_plugin_main"
_NEURON_9 = ("mt6993",)  # every other SoC of MediaTek is compiled for with version 8 of its SDK
_SELECTED = re.compile(
    r"Partitioned subgraph<\d+>, selected (\d+) ops, from a total of (\d+) ops. resulted in (\d+) partitions"
)


@dataclass(frozen=True)
class Share:
    """What of one subgraph goes to the NPU."""

    taken: int  # operators
    operators: int
    partitions: int


@dataclass(frozen=True)
class Compiled:
    path: Path
    bytes: int
    subgraphs: tuple[Share, ...]


@dataclass(frozen=True)
class Run:
    """How `apply_plugin_main` ended."""

    returncode: int  # -9: by signal 9
    log: str

    @property
    def shares(self) -> tuple[Share, ...]:
        return tuple(Share(*map(int, numbers)) for numbers in _SELECTED.findall(self.log))


def compile_for(
    graph: Path,
    vendor: str,
    soc: str,
    output: Path,
    *,
    libraries: Path | None = None,
    flags: Mapping[str, str] | None = None,
) -> Compiled:
    """Writes `graph` with the operators that the NPU takes compiled for `soc`; the others stay for the CPU.

    `libraries` is the folder of the vendor's SDK, by default that of its installed package; `flags` go to the
    plugin (`{"intel_openvino_graph_backends": "cpu"}`). Raises `UsageError` for an unknown vendor or SoC,
    `ResourceError` where the plugin or its SDK is missing or fails, `CheckFailed` where nothing is taken.
    `output` is whole or not there.
    """
    known, model = target(vendor, soc)
    if model == ON_CPU:  # which the plugin asks for otherwise
        flags = {"intel_openvino_graph_backends": "cpu", **(flags or {})}
        model = known.socs[0]
    before = read(graph)
    folder = libraries or sdk_libraries(known, model)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as scratch:
        made = Path(scratch) / "made.tflite"
        run = run_plugin("apply", graph, known, model, made, folder, flags or {})
        if run.returncode:
            raise _failure(run, known, graph)
        try:
            after = read(made)
        except BundleError as error:
            raise ResourceError(
                f"{known.maker}'s plugin wrote a damaged graph of {graph.name}: {error.message}",
                "Sparse weights that stay on the CPU are lost that way: export them dense.",
            ) from None
        if not any(o.name == DISPATCH for s in after.subgraphs for o in s.operators):
            raise _nothing_taken(known, graph)
        drop_stale_order(made, graph)  # plugins keep it, and no runtime opens the graph with it
        size = made.stat().st_size
        made.replace(output)
    if len(run.shares) != len(before.subgraphs):
        raise ResourceError(f"{known.maker}'s plugin told of {len(run.shares)} subgraphs of {graph.name}")
    return Compiled(output, size, run.shares)


def need_sdk(vendor: str, soc: str) -> None:
    """Raises what `compile_for` would for want of a plugin or of its SDK."""
    known, model = target(vendor, soc)
    if not (_package() / known.plugin).exists():
        raise _no_plugin(known)
    sdk_libraries(known, model)


def target(vendor: str, soc: str) -> tuple[Vendor, str]:
    """The vendor, and its SoC as its plugin spells it. Raises `UsageError` for an unknown one."""
    found = parse_target(f"npu:{vendor}:{soc}")
    return VENDORS[found.vendor], found.soc


def sdk_libraries(vendor: Vendor, soc: str) -> Path:
    """Folder of the installed SDK's libraries; raises `ResourceError` where there is none."""
    try:
        module = importlib.import_module(vendor.sdk_module)
    except ImportError:
        raise ResourceError(
            f"compiling for {vendor.maker} needs its SDK, which is not installed",
            f"Run: pip install {vendor.sdk}",
        ) from None
    with contextlib.redirect_stderr(None):  # they warn of what is said below
        if vendor.name == "openvino":
            folder: Path | None = Path(str(module.__file__)).parent / "libs"
        elif vendor.name == "mediatek":
            folder = module.path_to_sdk_libs("v9" if soc in _NEURON_9 else "v8")
        else:
            folder = module.path_to_sdk_libs()
    if folder is None or not any(folder.glob("*.so*")):
        raise ResourceError(
            f"{vendor.sdk} is installed without its libraries: installing it downloads them from "
            f"{vendor.sdk_source or 'its maker'}, and goes on without them where it cannot",
            f"Where that can be reached, run: pip install --force-reinstall --no-cache-dir {vendor.sdk}",
        )
    return folder


def run_plugin(
    command: str,
    graph: Path,
    vendor: Vendor,
    soc: str,
    output: Path,
    libraries: Path,
    flags: Mapping[str, str],
) -> Run:
    """`command` is "apply", or "partition", which needs no device and compiles nothing."""
    package = _package()
    tool, plugin = package / _TOOL, package / vendor.plugin
    if not tool.exists() or not plugin.exists():
        raise _no_plugin(vendor)
    given = {
        "cmd": command,
        "model": str(graph),
        "o": str(output),
        "soc_manufacturer": vendor.maker,
        "soc_model": soc,
        "err": "--",
        "libs": str(plugin.parent),
        **({"mediatek_sdk_version_type": "version9"} if soc in _NEURON_9 else {}),
        **flags,
    }
    searched = [str(libraries), str(package), os.environ.get("LD_LIBRARY_PATH", "")]
    # MediaTek's plugin leaves a folder behind when it fails, and removes this one when it does not.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        done = subprocess.run(
            [str(tool), *(f"--{name}={value}" for name, value in given.items())],
            env={
                **os.environ,
                "LD_LIBRARY_PATH": os.pathsep.join(filter(None, searched)),
                "MTKNN_ADAPTER_DLA_DIR": scratch,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    return Run(done.returncode, done.stdout)


def _no_plugin(vendor: Vendor) -> ResourceError:
    return ResourceError(
        f"this ai-edge-litert has no compiler plugin for {vendor.maker}",
        "Compile on x86-64 Linux: only the wheel for it has them.",
    )


def _package() -> Path:
    spec = importlib.util.find_spec("ai_edge_litert")
    if spec is None or spec.origin is None:
        raise ResourceError("ai-edge-litert is not installed", "Run: pip install ai-edge-litert")
    return Path(spec.origin).parent


def _failure(run: Run, vendor: Vendor, graph: Path) -> EdgeError:
    if run.returncode < 0:
        name = signal.Signals(-run.returncode).name
        return ResourceError(
            f"{vendor.maker}'s compiler plugin crashed on {graph.name} ({name})",
            "Its SDK and ai-edge-litert must be of one release.",
        )
    if "Loaded 0 plugins" in run.log:
        return ResourceError(
            f"{vendor.maker}'s compiler plugin cannot be loaded: {_reason(run.log)}",
            f"Is {vendor.sdk} of the same release as ai-edge-litert?",
        )
    said = _nothing_taken(vendor, graph)
    if (run.shares and not any(share.taken for share in run.shares)) or "whole graph" in said.remedy:
        return said
    return ResourceError(
        f"{vendor.maker}'s plugin cannot compile {graph.name}: {_reason(run.log)}",
        f"What is known of it: {'; '.join(vendor.limits)}.",
    )


def _nothing_taken(vendor: Vendor, graph: Path) -> CheckFailed:
    reasons: Counter[str] = Counter()
    if vendor.name in JUDGED:
        for subgraph in read(graph, details=True).subgraphs:
            for refusals in verdicts(subgraph, vendor.name).values():
                reasons.update(refusal.reason for refusal in refusals[:1])
    often = f"Most often: {reasons.most_common(1)[0][0]}." if reasons else ""
    return CheckFailed(f"{vendor.maker}'s plugin takes no operator of {graph.name}", often)


def _reason(log: str) -> str:
    """The last thing that an error in the log says: an exception's text goes on for lines without a level."""
    said = ""
    in_error = False
    for line in log.splitlines():
        if re.match(r"(INFO|VERBOSE|DEBUG|\[LITERT_TOOLS)", line):
            in_error = False
        elif re.match(r"(ERROR|WARNING): ", line):
            text = re.sub(r"^((ERROR|WARNING): (\[[^]]*\] ?)?)+", "", line)
            in_error = line.startswith("ERROR") or "Failed to load plugin" in line
            said = text if in_error and text else said
        elif in_error and line.strip("└ "):
            said = line.strip("└ ")
    return said or "it does not say why"
