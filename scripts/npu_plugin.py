"""LiteRT's own compiler plugins on this machine, to see which operators they take.

    python scripts/npu_plugin.py qualcomm GRAPH.tflite

prints, for each subgraph, the numbers of the operators that go to the NPU. OpenVINO is the real one
(`openvino_env.py`). The SDKs of Qualcomm and MediaTek cannot be had from a package registry alone: libraries
of their names, built with gcc, stand in for them and take everything, so that what is seen are the plugin's
own rules.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import openvino_env
from emulation import CACHE, Unavailable, run

from converters.npu import run_plugin, target
from delegates.npu import JUDGED
from rpi_runtime.errors import EdgeError, ResourceError
from rpi_runtime.tflite_file import read

_NATIVE = Path(__file__).resolve().parents[1] / "tests/delegates/native"
_LIBRARIES = {
    "qualcomm": ("fake_qnn.c", ("QnnHtp", "QnnIr", "QnnLpai", "QnnSaver", "QnnSystem")),
    "mediatek": ("fake_neuron.c", ("neuron_adapter",)),
}
SOCS = {"qualcomm": "SM8750", "mediatek": "mt6989", "openvino": "LNL"}


class NpuPlugin:
    def __init__(self, vendor: str, libraries: Path) -> None:
        self.vendor, self.soc = target(vendor, SOCS[vendor])
        self.libraries = libraries

    def taken(self, graph: Path) -> list[set[int]]:
        """Numbers of the operators of each subgraph that go to the NPU. Raises `ResourceError` where the
        plugin gives up the whole graph, `BundleError` where what it wrote cannot be read."""
        with tempfile.TemporaryDirectory() as scratch:
            made = Path(scratch) / "made.tflite"
            done = run_plugin("partition", graph, self.vendor, self.soc, made, self.libraries, {})
            if done.returncode:
                raise ResourceError(f"{graph.name}: the plugin ends with {done.returncode}")
            before, after = read(graph), read(made)
        found = []
        for old, new in zip(before.subgraphs, after.subgraphs, strict=False):  # partitions follow
            left = Counter((o.name, tuple(new.tensors[i].name for i in o.outputs)) for o in new.operators)
            taken = set()
            for number, operator in enumerate(old.operators):
                key = operator.name, tuple(old.tensors[i].name for i in operator.outputs)
                if left[key]:
                    left[key] -= 1
                else:
                    taken.add(number)
            found.append(taken)
        return found

    def counts(self, graph: Path) -> list[int]:
        """How many operators of each subgraph it selects, as it says itself."""
        with tempfile.TemporaryDirectory() as scratch:
            made = Path(scratch) / "made.tflite"
            done = run_plugin("partition", graph, self.vendor, self.soc, made, self.libraries, {})
        return [share.taken for share in done.shares]

    def socs(self) -> tuple[str, ...]:
        """The SoCs that it says it knows."""
        nowhere = Path()
        done = run_plugin("info", nowhere, self.vendor, self.soc, nowhere, self.libraries, {"o": "--"})
        told = re.search(r"LiteRtCompilerPlugin > .*? \| (.*)", done.log)
        if told is None:
            raise ResourceError(f"{self.vendor.maker}'s plugin does not tell its SoCs")
        return tuple(re.findall(r'"([^"]+)"', told[1]))


def prepare(vendor: str) -> NpuPlugin:
    """Fetches or builds what is missing; raises `Unavailable` or `ResourceError` where it cannot be had."""
    if vendor == "openvino":
        return NpuPlugin(vendor, openvino_env.libraries(openvino_env.make()))
    source, names = _LIBRARIES[vendor]
    target_folder = CACHE / f"fake-{vendor}"
    if target_folder.exists():
        return NpuPlugin(vendor, target_folder)
    if shutil.which("gcc") is None:
        raise Unavailable("gcc not found: what stands in for an SDK is built with it")
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as work:
        made = Path(work) / "made"
        made.mkdir()
        for name in names:
            run(["gcc", "-O1", "-fPIC", "-shared", "-o", str(made / f"lib{name}.so"), str(_NATIVE / source)])
        made.rename(target_folder)
    return NpuPlugin(vendor, target_folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("vendor", choices=JUDGED)
    parser.add_argument("graph", type=Path)
    given = parser.parse_args()
    try:
        taken = prepare(given.vendor).taken(given.graph)
    except (Unavailable, EdgeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    for number, operators in enumerate(taken):
        print(f"subgraph {number}:", *sorted(operators))
    return 0


if __name__ == "__main__":
    sys.exit(main())
