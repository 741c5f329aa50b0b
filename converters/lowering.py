"""PyTorch modules with fixed shapes -> one .tflite file: the one call of litert-torch.

Input names are the sample's keys and output names those of the dict the module returns. All signatures of a
file share one copy of the weights. The same modules give the same bytes, in every process.

A linear layer is lowered here, to one FULLY_CONNECTED named after its place in the checkpoint: litert-torch
takes it apart into reshapes and a product, merges the reshapes of neighbouring layers, and ends with names
from which a recipe could not tell `k_proj` from `q_proj`.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from converters.silence import silence
from rpi_runtime.errors import EdgeError


@contextmanager
def _own_recursion_limit() -> Iterator[None]:
    """Gives the process its recursion limit back: the converter raises it to 100,000 for good, and with that
    a deeply nested JSON file ends in a crash instead of a RecursionError."""
    before = sys.getrecursionlimit()
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


with silence(), _own_recursion_limit():
    import litert_torch
    from litert_converter.mlir import ir
    from litert_converter.tools import model_utils
    from litert_torch import fx_infra
    from litert_torch._convert import core, litert_converter, signature
    from litert_torch.backend import inline_consts, lowerings

    from converters.graph_writer import Constants, write_graph


@dataclass(frozen=True)
class Traced:
    """One signature to be: `module(**sample)` returns a dict of tensors; only shapes of `sample` matter."""

    name: str
    module: nn.Module
    sample: dict[str, Tensor]


def lower(signatures: Sequence[Traced], out_path: Path, release: Callable[[], None] = lambda: None) -> None:
    """Writes `signatures` as one .tflite file; raises `EdgeError` when an operator has no TFLite form.

    `release` is called whenever a weight was read, for those that need not stay in memory.

    This is `litert_torch.Converter.convert(lightweight_conversion=True)`, which hands weights over lazily,
    but for two things: that keeps the traced programs of all signatures, some 10 MB a layer each, to the end
    (`_Programs`), and builds the file in memory (`graph_writer`).
    """
    for s in signatures:
        _check_distinct(s.sample)
    _constants.release = release
    wanted = [signature.Signature(s.name, s.module.eval(), (), s.sample) for s in signatures]
    try:
        with torch.no_grad(), silence(), _own_recursion_limit():
            sys.setrecursionlimit(model_utils.RECURSION_LIMIT)
            exporter = litert_converter.exported_programs_to_flatbuffer(
                _Programs(wanted), wanted, lightweight_conversion=True
            )
            write_graph(getattr(exporter.module, "operation", exporter.module), _constants, out_path)
    except (MemoryError, OSError):
        raise
    except Exception as error:
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise EdgeError(
            f"{out_path.name}: litert-torch {litert_torch.__version__} cannot lower it: {first_line}",
            "Write the module with operators that TFLite has; --debug shows where the converter stopped.",
        ) from error
    finally:
        _constants.clear()


class _Programs(Sequence[Any]):
    """The traced programs of `signatures`, each made when it is asked for and emptied when the next one
    is."""

    def __init__(self, signatures: Sequence[Any]) -> None:
        self._signatures = signatures

    def __len__(self) -> int:
        return len(self._signatures)

    def __getitem__(self, index: Any) -> Any:
        wanted = self._signatures[index]
        # Lowering decomposes anyway; only the layouts of convolutions are chosen before, and on that.
        convolves = any(isinstance(part, nn.Conv2d) for part in wanted.module.modules())
        program = core.export_torch_signature(wanted, run_decompositions=convolves)
        return core._run_convert_passes(program)

    def __iter__(self) -> Iterator[Any]:
        for index in range(len(self)):
            program = self[index]
            yield program
            vars(program).clear()  # the caller's loop variable still holds it
            gc.collect()


class Component(nn.Module):
    """Base of the modules that are traced: `self.component` is what the checkpoint names describe."""

    def __init__(self, component: nn.Module) -> None:
        super().__init__()
        self.component = component


def _check_distinct(sample: dict[str, Tensor]) -> None:
    """Raises ValueError for one tensor under two names: torch.export would make one input of them."""
    names: dict[int, str] = {}
    for name, tensor in sample.items():
        first = names.setdefault(id(tensor), name)
        if first != name:
            raise ValueError(f"inputs {first!r} and {name!r} are the same tensor")


def _lower_linear(context: Any, x: ir.Value, weight: ir.Value, bias: ir.Value | None = None) -> ir.Value:
    name, _ = list(context.node.meta["nn_module_stack"].values())[-1]
    name = name.removeprefix("component.")
    if context.node.args[1].target is inline_consts.tensor_lowering_placeholder:
        weight.owner.location = ir.Location.name(f"{name}.weight")
    else:  # a product of two results
        name = ".".join(filter(None, (name, context.node.name)))
    with ir.Location.name(name):
        if bias is None:
            bias = _operation("tfl.no_value", ir.NoneType.get(), [], value=ir.UnitAttr.get())
        shape = [*x.type.shape[:-1], weight.type.shape[0]]
        return _operation(
            "tfl.fully_connected",
            ir.RankedTensorType.get(shape, x.type.element_type),
            [x, weight, bias],
            fused_activation_function=ir.StringAttr.get("NONE"),
            weights_format=ir.StringAttr.get("DEFAULT"),
            keep_num_dims=ir.BoolAttr.get(len(shape) > 2),  # false is what NNAPI takes before level 30
        )


def _lower_constant(context: Any, tensor: Tensor) -> ir.Value:
    """As the library does it, and remembers the tensor."""
    value = inline_consts.tensor_lowering_placeholder_lowering(context, tensor)
    _constants.tensors[value.owner.attributes["value"]] = tensor
    _constants.release()
    return value


# Of the lowering in progress. The library knows a constant again by its tensor's address, which must not
# become that of another one before the end.
_constants = Constants()


def _operation(name: str, result: ir.Type, operands: list[ir.Value], **attributes: ir.Attribute) -> ir.Value:
    return ir.Operation.create(name, results=[result], operands=operands, attributes=attributes).results[0]


def _as_it_is(canonicalize: Any, program: Any) -> Any:
    """Tracing a program anew, only for lowering to trace it once more, takes a quarter of an export and
    changes no byte of it."""
    return fx_infra.ExportedProgramPassResult(program, False)


fx_infra.CanonicalizePass.call = _as_it_is
fx_infra.decomp.remove_pre_lower_decomp(torch.ops.aten.linear)
lowerings.lower(torch.ops.aten.linear.default)(_lower_linear)
lowerings.lower(inline_consts.tensor_lowering_placeholder)(_lower_constant)
