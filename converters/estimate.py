"""Memory and disk that a convert needs: stated before it starts, refused when the host has less.

The factors were measured: peak resident memory of a stage is a part that every stage of its kind pays, for
the libraries, and parts that grow with the component's float32 weights, most of which are on disk, and with
its largest matrix. What libraries take differs by 150 MB between machines; the constants have room for that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from converters.host import Resources
from converters.options import HEAD, Plan
from converters.recipes import Recipe
from converters.stages import Stage
from rpi_runtime.errors import ResourceError
from rpi_runtime.manifest import DECODER

_MB = 1_000_000


@dataclass(frozen=True)
class StageNeed:
    stage: str
    memory_bytes: int  # peak resident
    disk_bytes: int  # left on disk
    temporary_bytes: int  # on disk while it runs: weights as float32


@dataclass(frozen=True)
class Needs:
    """Of all stages still to do, with what the host has."""

    stages: tuple[StageNeed, ...]
    host: Resources

    @property
    def largest(self) -> StageNeed:
        """The stage that needs most memory; stages run one after another."""
        return max(self.stages, key=lambda s: s.memory_bytes)

    @property
    def memory_bytes(self) -> int:
        return self.largest.memory_bytes if self.stages else 0

    @property
    def disk_bytes(self) -> int:
        most = max((s.temporary_bytes for s in self.stages), default=0)
        return sum(s.disk_bytes for s in self.stages) + most


@dataclass(frozen=True)
class _Factor:
    libraries_bytes: int
    per_weight_byte: float = 0.0  # peak bytes per byte of float32 weights
    per_head_byte: float = 0.0  # of the largest matrix, a decoder's head


_FACTORS = {
    "export": _Factor(950 * _MB, 0.5),
    "export decoder": _Factor(1100 * _MB, per_head_byte=1.25),
    "quantize": _Factor(800 * _MB, 0.4),
    "quantize decoder": _Factor(780 * _MB, per_head_byte=1.65),
    "check": _Factor(930 * _MB, 0.3),
    "check decoder": _Factor(1300 * _MB),  # and the graph
    "compile": _Factor(400 * _MB, 4.0),
    "embedding": _Factor(560 * _MB, 0.8),
    "text": _Factor(400 * _MB),
}


# Of a branch of nano with three tile sides: 250 to 600 MB, for the activations of all samples; with room.
_CALIBRATION_BYTES = 800 * _MB


def needs(stages: Sequence[Stage], plan: Plan, parameters: Mapping[str, int], host: Resources) -> Needs:
    """What `stages`, those not finished yet, will need. `parameters` is numbers per component."""
    return Needs(tuple(_need(stage, plan, parameters) for stage in stages), host)


def require(needed: Needs) -> None:
    """Raises `ResourceError`, with the numbers, when the host has less than `needed`."""
    if not needed.stages:
        return
    host = needed.host
    if needed.memory_bytes > host.memory_bytes:
        raise ResourceError(
            f"not enough memory: stage '{needed.largest.stage}' needs about {_mb(needed.memory_bytes)}, "
            f"{_mb(host.memory_bytes)} are free ({host.memory_source})",
            "Close other programs, add swap, convert fewer --components, or use a larger machine.",
        )
    if needed.disk_bytes > host.disk_bytes:
        raise ResourceError(
            f"not enough disk: converting needs about {_mb(needed.disk_bytes)}, "
            f"{_mb(host.disk_bytes)} are free",
            "Free some space, write to another disk, or convert fewer --components.",
        )


def _need(stage: Stage, plan: Plan, parameters: Mapping[str, int]) -> StageNeed:
    kind, _, name = stage.name.partition(" ")
    component = name.partition(".")[0]  # "export vision_base.nnapi-30"
    factor = _FACTORS.get(f"{kind} {component}", _FACTORS[kind])
    weight_bytes = 4 * parameters.get(component or kind, 0)
    memory = factor.libraries_bytes + int(
        factor.per_weight_byte * weight_bytes + factor.per_head_byte * 4 * parameters["embedding"]
    )
    bits = _bits(plan.variant(name).recipe) if kind in ("quantize", "check", "compile") else 32.0
    if kind == "check" and component == DECODER:  # the mapped file and its packed copy
        memory += int(2 * weight_bytes * bits / 32)
    if kind == "quantize" and plan.variant(name).recipe.needs_calibration:
        memory += _CALIBRATION_BYTES
    if kind == "quantize" and component == DECODER:  # 4 bits are packed at the end
        memory += int(weight_bytes * max(9.0, bits) / 32)
    if kind == "export":
        disk = weight_bytes
    elif kind in ("quantize", "compile"):
        disk = int(weight_bytes * bits / 32)
    elif kind == "embedding":
        disk = parameters["embedding"] * {HEAD: 0, "int8": 1, "fp16": 2}[plan.embedding]
    else:
        disk = 0
    temporary = weight_bytes if kind in ("export", "check") else 0
    return StageNeed(stage.name, memory, disk + 5 * _MB, temporary)


def _bits(recipe: Recipe) -> float:
    """Bits of a weight under `recipe`, scales included, with room for those that a scope makes larger."""
    sizes = {"float32": 32.0, "float16": 16.0, "int8": 9.0, "int4": 6.0}
    return max((sizes[rule.weights] for rule in recipe.rules if not rule.scope), default=32.0)


def _mb(count_bytes: int) -> str:
    return f"{count_bytes / 1e6:,.0f} MB"
