"""Operators that LiteRT's GPU accelerator accepts, and then computes wrongly or does not survive.

Each was found by running single operators on the accelerator of ai-edge-litert 2.3.0 and on the CPU. Nothing
warns of them: a graph that has one runs on the GPU and gives other results, or the process aborts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from delegates.gpu_checks import FOLD
from delegates.gpu_tensors import words
from delegates.graph import GraphTensor, Node
from delegates.rules import Refusal, told

Fault = Callable[[Node], Refusal | None]
_EQUAL_RANKS = "Reshape the constant to as many dimensions as the other input has, the first of them 1."


def faults(node: Node) -> tuple[Refusal, ...]:
    """What goes wrong when the accelerator runs this operator; empty where nothing is known to."""
    return tuple(_faults(node))


def _faults(node: Node) -> Iterator[Refusal]:
    for fault in FAULTS.get(node.name, ()):
        try:
            found = fault(node)
        except IndexError:  # it lacks an input, and is not accepted
            continue
        if found is not None:
            yield found


def _constant_with_batch(node: Node) -> Refusal | None:
    """The accelerator takes the first dimension of what is computed for the batch, that of a constant of
    floats for the height, and does not align a constant of integers at all."""
    constants = [t for t in node.inputs if t is not None and t.is_constant]
    others = [t for t in node.inputs if t is not None and not t.is_constant]
    if len(constants) != 1 or len(others) != 1 or constants[0].numbers == 1:
        return None
    constant, other = constants[0], others[0]
    rank = len(constant.shape)
    if constant.dtype not in ("float32", "float16") and constant.quantization is None:
        wrong = rank != len(other.shape)
    else:
        wrong = rank == len(other.shape) and (rank == 1 or (rank in (2, 3) and constant.shape[0] != 1))
    if not wrong:
        return None
    return Refusal(
        f"the constant, {told(constant)}, is combined with {told(other)} along other dimensions", _EQUAL_RANKS
    )


def _one_dimension(what: str) -> Fault:
    def fault(node: Node) -> Refusal | None:
        if len(node.input(0).shape) != 1:
            return None
        return Refusal(
            f"its input, {told(node.input(0))}, has one dimension: {what}", "Reshape it to [1, n]."
        )

    return fault


def _grouped(node: Node) -> Refusal | None:
    channels, of_group, made = node.input(0).shape[3], node.input(1).shape[3], node.outputs[0].shape[3]
    if not node.input(1).is_constant or channels == of_group:
        return None
    groups = channels // of_group
    if (of_group == 1 and channels == made) or (of_group % 4 == 0 and made // groups % 4 == 0):
        return None
    return Refusal(
        f"{groups} groups of {of_group} channels that make {made // groups} each are mixed up",
        "Give each group a multiple of 4 channels, in and out, or split the convolution.",
    )


def _computed_bias(node: Node) -> Refusal | None:
    weights = node.input(1)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None or bias.is_constant or not weights.is_constant:
        return None
    return Refusal("its bias is computed: the process aborts", "Add it by an ADD after it.")


def _whole_sums(node: Node) -> Refusal | None:
    used = [name for name in ("exclusive", "reverse") if node.option(name)]
    return Refusal(f"it has {used[0]}, which is ignored", "Export it without.") if used else None


def _padded_batch(node: Node) -> Refusal | None:
    source, paddings = node.input(0), node.input(1)
    pads_first = any(paddings.values[:2])
    if paddings.shape[0] == 3 and (source.shape[0] != 1 or pads_first):
        return Refusal(f"it pads {told(source)} by a batch too many", "Reshape around it to 4 dimensions.")
    if paddings.shape[0] == 4 and source.shape[0] == 1 and pads_first:
        return Refusal(f"it pads the batch of {told(source)}, and leaves it empty", "Pad by CONCATENATION.")
    return None


def _whole_padding(node: Node) -> Refusal | None:
    if node.input(0).dtype != "int32":
        return None
    return Refusal(f"it pads {told(node.input(0))}: it comes out as 0, or does not compile", "Use float32.")


def _one_scale_for_all_rows(node: Node) -> Refusal | None:
    table = node.input(1)
    if len(table.shape) != 2:
        return Refusal(f"its table is {told(table)}: the process aborts", "Reshape it to 2 dimensions.")
    if table.quantization is None or table.quantization.channels == table.shape[0]:
        return None
    return Refusal("all rows but the first are read as 0", "Quantise the table per row.")


def _many_positions(node: Node) -> Refusal | None:
    indices = node.input(0)
    middle = indices.shape[1:-1] if len(indices.shape) > 1 else ()
    if math.prod(middle) == 1:
        return None
    return Refusal(f"its indices are {told(indices)}, and only a row is filled", "Flatten them.")


def _constant_operand(node: Node) -> Refusal | None:
    if not node.input(0).is_constant and not node.input(1).is_constant:
        return None
    return Refusal("what it writes, or writes into, is constant: the process aborts", FOLD)


def _of_bools(node: Node) -> Refusal | None:
    if node.input(0).dtype != "bool":
        return None
    return Refusal(f"of {told(node.input(0))} it finds the wrong one", "Cast to float32 before it.")


def _broadcast_batches(node: Node) -> Refusal | None:
    left, right = node.input(0), node.input(1)
    if len(right.shape) == 2 and right.is_constant:
        return None  # it becomes FULLY_CONNECTED
    if math.prod(left.shape[:-2]) == math.prod(right.shape[:-2]):
        return None
    return Refusal(
        f"{_batches(left)} matrices are multiplied by {_batches(right)}: all but the first come out wrong",
        "Give both the same batches.",
    )


def _batches(tensor: GraphTensor) -> int:
    return math.prod(tensor.shape[:-2])


def _unsplit(node: Node) -> Refusal | None:
    if node.option("num_splits") == 1:
        return Refusal("it splits into one: the process aborts", "Leave it out.")
    if node.input(1).is_constant:
        return Refusal("it splits a constant: the process aborts", FOLD)
    return None


def _condition_of_lower_rank(node: Node) -> Refusal | None:
    condition, made = node.input(0), node.outputs[0]
    if len(condition.shape) == len(made.shape) or condition.numbers == 1:
        return None
    return Refusal(
        f"its condition, {told(condition)}, is spread over {list(made.shape)} along other dimensions",
        "Reshape the condition to as many dimensions.",
    )


_BINARY = words(
    "ADD ATAN2 DIV EQUAL FLOOR_DIV FLOOR_MOD GREATER GREATER_EQUAL LESS LESS_EQUAL LOGICAL_AND LOGICAL_OR "
    "MAXIMUM MINIMUM MUL NOT_EQUAL POW SQUARED_DIFFERENCE SUB"
)

FAULTS: dict[str, tuple[Fault, ...]] = {
    **dict.fromkeys(_BINARY, (_constant_with_batch,)),
    "ARG_MAX": (_of_bools,),
    "SOFTMAX": (_one_dimension("all are 1"),),
    "FULLY_CONNECTED": (_one_dimension("it is taken for a batch"), _computed_bias),
    "CONV_2D": (_grouped,),
    "CUMSUM": (_one_dimension("nothing is summed"), _whole_sums),
    "PAD": (_padded_batch, _whole_padding),
    "PADV2": (_padded_batch, _whole_padding),
    "MIRROR_PAD": (_padded_batch,),
    "EMBEDDING_LOOKUP": (_one_scale_for_all_rows,),
    "ONE_HOT": (_many_positions,),
    "DYNAMIC_UPDATE_SLICE": (_one_dimension("it always writes to the start"), _constant_operand),
    "BATCH_MATMUL": (_broadcast_batches,),
    "SPLIT": (_unsplit,),
    "SELECT_V2": (_condition_of_lower_rank,),
}
