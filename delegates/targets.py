"""What a graph can be placed on: one description per delegate, and the rules that judge operators for it."""

from __future__ import annotations

from dataclasses import dataclass

from delegates import gpu, nnapi, npu
from delegates.gpu_faults import faults as gpu_faults
from delegates.graph import Node, Subgraph
from delegates.rules import Refusal

DEFAULT_NNAPI_LEVEL = 30  # the first with int8 as TFLite has it


@dataclass(frozen=True)
class Delegate:
    """What is known of a delegate, whatever graph it gets."""

    name: str
    title: str
    loaded: str  # how
    precision: str  # what it computes in
    lowering: str  # what graphs suit it
    cosine: float  # to PyTorch, that this precision and rounding leave at least
    source: str  # of the rules
    warning: str = ""  # for every report
    most_partitions: int | None = None  # that it keeps, the largest; None: all


@dataclass(frozen=True)
class Target:
    """A delegate with what decides about operators."""

    delegate: str  # a name of `DELEGATES`
    nnapi_level: int = DEFAULT_NNAPI_LEVEL
    vendor: str = ""  # of an NPU
    soc: str = ""  # likewise; "" for any of the vendor

    @property
    def description(self) -> Delegate:
        return DELEGATES[self.delegate]

    @property
    def runs_on_cpu(self) -> bool:
        """Whether the graphs for it are graphs for the CPU, too: compiled ones are not."""
        return self.delegate != "npu"

    @property
    def slug(self) -> str:
        """For names of files."""
        return str(self).replace(":", "-").lower()

    def __str__(self) -> str:
        if self.delegate == "nnapi":
            return f"nnapi:{self.nnapi_level}"
        return ":".join(filter(None, (self.delegate, self.vendor, self.soc)))

    @property
    def title(self) -> str:
        """In words."""
        if self.delegate == "nnapi":
            return f"NNAPI, feature level {self.nnapi_level} ({nnapi.LEVELS[self.nnapi_level]})"
        if self.vendor:
            maker = npu.VENDORS[self.vendor].maker.replace("IntelOpenVINO", "Intel OpenVINO")
            return " ".join(filter(None, (maker, self.soc, "NPU")))
        return self.description.title


CPU = Target("cpu")
DISPATCH = "DISPATCH_OP"  # stands for what a compiler plugin of LiteRT's took

DELEGATES = {
    d.name: d
    for d in (
        Delegate(
            "cpu",
            "XNNPACK, on the CPU",
            loaded="XNNPACK, which LiteRT brings; TFLite's own kernels run what XNNPACK does not take",
            precision="that of the graph",
            cosine=1.0,
            lowering="int8 or int4 weights, whose activations are quantised on the fly",
            source="XNNPACK itself, as ai-edge-litert has it on this machine",
        ),
        Delegate(
            "gpu",
            "the GPU",
            loaded="LiteRT's GPU accelerator: WebGPU on Linux; OpenCL, OpenGL or Vulkan on Android",
            precision="float16 unless float32 is forced",
            cosine=0.998,
            lowering="float16 weights, at most 4 dimensions",
            source=gpu.SOURCE,
            most_partitions=gpu.MOST_PARTITIONS,
        ),
        Delegate(
            "npu",
            "the NPU",
            loaded="LiteRT's dispatch library of the vendor, for graphs that its compiler plugin compiled",
            precision="that of the vendor's compiler",
            cosine=0.98,
            lowering="int8 weights and activations, static shapes; compiled ahead of time for one SoC",
            source="the compiler plugins of ai-edge-litert 2.3.0",
        ),
        Delegate(
            "nnapi",
            "NNAPI",
            loaded="TFLite's NNAPI delegate, with libneuralnetworks.so of the phone",
            precision="that of the graph; float32 may be computed in float16 by drivers",
            cosine=0.98,
            lowering="full integer: weights and activations of 8 bits, static shapes, at most 4 dimensions",
            source=nnapi.SOURCE,
            warning="NNAPI is the legacy path: Android 15 deprecates it. Prefer gpu or npu where they are.",
            most_partitions=nnapi.MOST_PARTITIONS,
        ),
    )
}


def verdicts(subgraph: Subgraph, target: Target) -> dict[int, tuple[Refusal, ...]]:
    """Number of each operator -> why the delegate leaves it to the CPU, empty where it takes it."""
    if any(operator.name == DISPATCH for operator in subgraph.operators):
        return _of_compiled(subgraph, target)
    if target.delegate == "npu":
        return npu.verdicts(subgraph, target.vendor)
    if target.delegate == "gpu":
        return gpu.verdicts(subgraph)
    if target.delegate != "nnapi":
        return dict.fromkeys(range(len(subgraph.operators)), ())
    return nnapi.verdicts(subgraph, target.nnapi_level)


def _of_compiled(subgraph: Subgraph, target: Target) -> dict[int, tuple[Refusal, ...]]:
    """Of a graph that a plugin compiled: what it took stands behind one operator, the rest is the CPU's."""
    rest = Refusal("it was left to the CPU when the graph was compiled", "See the graph before compiling.")
    foreign = Refusal("it was compiled for an NPU", f"Name the graph that was made for {target}.")
    return {
        number: (foreign,) if target.delegate != "npu" else () if operator.name == DISPATCH else (rest,)
        for number, operator in enumerate(subgraph.operators)
    }


def faults(node: Node, target: Target) -> tuple[Refusal, ...]:
    """What is known to go wrong when the delegate runs this operator, which it takes."""
    if target.delegate == "gpu":
        return gpu_faults(node)
    return nnapi.faults(node) if target.delegate == "nnapi" else ()
