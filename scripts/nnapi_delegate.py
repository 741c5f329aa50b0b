"""TFLite's own NNAPI delegate on this machine: built from Debian's source of TensorFlow Lite 2.14.1, beside
two libneuralnetworks.so. The device of one claims every operation, to see what the delegate takes; that of
the other computes.

    python scripts/nnapi_delegate.py --level 29 GRAPH.tflite

prints, for each subgraph, the numbers of the operators that go to NNAPI. It needs g++ and apt; everything is
kept under `.cache` (60 MB of sources, one minute to build), and tflite-runtime 2.14 runs it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from emulation import CACHE, Unavailable, debian, run, unpacked, unpacked_source

from delegates.nnapi import ANDROID_LEVELS
from rpi_runtime.errors import ResourceError

VERSION = "2.14.1"  # of TensorFlow Lite
_NATIVE = Path(__file__).resolve().parents[1] / "tests/delegates/native"
SOURCE_SUITE = "sid"  # no stable release of Debian has it
SOURCE_MEMBERS = ("*/tensorflow/lite/*.h", "*/tensorflow/lite/*.cc", "*/tensorflow/core/public/version.h")
_HEADERS = ("libfp16-dev", "libfarmhash-dev", "libflatbuffers-dev", "libgemmlowp-dev", "libeigen3-dev")
_SOURCES = (
    *(f"delegates/nnapi/{name}" for name in ("nnapi_delegate", "quant_lstm_sup")),
    *(f"nnapi/{name}" for name in ("nnapi_implementation", "nnapi_util")),
    *(f"delegates/{name}" for name in ("utils", "serialization")),
    *("kernels/kernel_util", "kernels/internal/utils/sparsity_format_converter"),
    *("util", "array", "logger", "stderr_reporter", "minimal_logging", "minimal_logging_default"),
    *("core/c/common", "core/api/error_reporter"),
)
_RUN = """
import sys
from tflite_runtime.interpreter import Interpreter, OpResolverType, load_delegate
Interpreter(
    model_path=sys.argv[2],
    experimental_delegates=[load_delegate(sys.argv[1])],
    experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
)
"""


CLAIMING, COMPUTING = "claiming", "computing"  # devices
_DEVICES = {
    CLAIMING: ("fake_neuralnetworks.cc",),
    COMPUTING: ("computing_neuralnetworks.cc", "nnapi_operations.cc"),
}
_HEADERS_OF_OURS = ("nnapi_operations.h",)
_LEVELS = (29, 30, 31)  # of NNAPI's own functions


class NnapiDelegate:
    """`python` has tflite-runtime 2.14, whose interface the delegate was made for."""

    def __init__(self, library: Path, devices: Path, python: Path) -> None:
        self.library = library
        self.python = python
        self._devices = devices

    def environment(self, device: str, level: int) -> dict[str, str]:
        """Variables with which a process finds `device` at feature level `level`."""
        folder = self._devices / device / str(max(_LEVELS[0], level))
        return {"LD_LIBRARY_PATH": str(folder), "NNAPI_LEVEL": str(level)}

    def taken(self, graph: Path, level: int) -> list[set[int]]:
        """Numbers of the operators of each subgraph that go to NNAPI at feature level `level`. Raises
        `ResourceError` for a graph that the runtime does not open."""
        with tempfile.TemporaryDirectory() as scratch:
            told = Path(scratch) / "taken"
            environment = {
                **os.environ,
                **self.environment(CLAIMING, level),
                "NNAPI_TAKEN": str(told),
            }
            command = [str(self.python), "-c", _RUN, str(self.library), str(graph)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            lines = told.read_text().splitlines() if told.exists() else []
        statuses = {line.split()[0] for line in lines}
        if done.returncode or statuses != {"0"}:
            last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
            raise ResourceError(f"{graph.name} does not open at level {level}: {last}")
        return [{int(number) for number in line.split()[1:]} for line in lines]


def prepare(python: Path) -> NnapiDelegate:
    """Fetches and builds what is missing; raises `Unavailable` where that cannot be done."""
    return NnapiDelegate(_delegate(), _devices(), python)


def _delegate() -> Path:
    target = CACHE / f"nnapi-{VERSION}-{_digest('nnapi_plugin.cc')}" / "libnnapi_delegate.so"
    if target.exists():
        return target
    mirror, host = debian("apt-get", "dpkg-deb")
    source = _source()
    tree = unpacked("nnapi-headers", mirror, SOURCE_SUITE, host, _HEADERS, dependencies=False)
    headers = tree / "usr/include"
    with tempfile.TemporaryDirectory(dir=CACHE) as work_name:
        work = Path(work_name)
        (work / "include/third_party").mkdir(parents=True)
        (work / "include/third_party/eigen3").symlink_to(headers / "eigen3")
        include = [source, work / "include", headers, headers / "eigen3", headers / "gemmlowp"]
        made = work / "made"
        made.mkdir()
        objects = [_compiled(_NATIVE / "nnapi_plugin.cc", work, include)]
        objects += [_compiled(source / f"tensorflow/lite/{name}.cc", work, include) for name in _SOURCES]
        farmhash = next(tree.glob("usr/lib/*/libfarmhash.a"))
        linked = ["-shared", "-Wl,-Bsymbolic", "-Wl,--gc-sections", "-o", made / target.name]
        run(["g++", *map(str, [*linked, *objects, farmhash, "-ldl", "-lrt"])])
        made.rename(target.parent)
    return target


def _devices() -> Path:
    """The folder with a libneuralnetworks.so for each device and level."""
    sources = [name for names in _DEVICES.values() for name in names]
    target = CACHE / f"nnapi-devices-{_digest(*sources, *_HEADERS_OF_OURS)}"
    if target.exists():
        return target
    source = _source()
    with tempfile.TemporaryDirectory(dir=CACHE) as work:
        made = Path(work) / "made"
        for device, names in _DEVICES.items():
            for level in _LEVELS:
                library = made / device / str(level) / "libneuralnetworks.so"
                library.parent.mkdir(parents=True)
                flags = [
                    "-O2",
                    "-std=c++17",
                    "-fPIC",
                    "-fvisibility=hidden",
                    f"-DLEVEL={level}",
                    f"-I{source}",
                ]
                run(["g++", "-shared", *flags, "-o", str(library), *(str(_NATIVE / name) for name in names)])
        made.rename(target)
    return target


def _source() -> Path:
    """TensorFlow Lite's."""
    if shutil.which("g++") is None:
        raise Unavailable("g++ not found: TFLite's NNAPI delegate is built with it")
    mirror, _ = debian("apt-get", "dpkg-deb")
    return unpacked_source(
        f"tensorflow-{VERSION}", mirror, SOURCE_SUITE, "tensorflow", VERSION, SOURCE_MEMBERS
    )


def _digest(*names: str) -> str:
    """Of our own sources: what was built of others is not used."""
    content = hashlib.sha256()
    for name in names:
        content.update((_NATIVE / name).read_bytes())
    return content.hexdigest()[:12]


def _compiled(source: Path, work: Path, include: list[Path]) -> Path:
    made = work / f"{source.stem}.o"
    flags = ["-O1", "-g0", "-fPIC", "-std=c++17", "-w", "-fvisibility=hidden"]
    sections = ["-ffunction-sections", "-fdata-sections", *(f"-I{folder}" for folder in include)]
    run(["g++", *flags, *sections, "-c", str(source), "-o", str(made)])
    return made


def main() -> int:
    import tflite_runtime_env

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("graph", type=Path)
    parser.add_argument("--level", type=int, choices=ANDROID_LEVELS, default=29)
    given = parser.parse_args()
    try:
        taken = prepare(tflite_runtime_env.make()).taken(given.graph, given.level)
    except (Unavailable, ResourceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    for number, operators in enumerate(taken):
        print(f"subgraph {number}:", *sorted(operators))
    return 0


if __name__ == "__main__":
    sys.exit(main())
