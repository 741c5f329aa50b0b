"""What a rule of a delegate is: a check that an operator passes, or a reason why it falls back and what would
help.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from delegates.graph import GraphTensor, Node


@dataclass(frozen=True)
class Refusal:
    reason: str  # what the delegate does not take, with the value
    fix: str  # what would make it


QUANTIZE = "Convert with --delegate nnapi, which quantises the whole graph."

# Of a node at a feature level (a delegate without levels ignores it); None when it passes.
Check = Callable[[Node, int], Refusal | None]


def told(tensor: GraphTensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"


def until(last: int, check: Check) -> Check:
    """`check` up to the feature level `last`."""
    return lambda node, level: check(node, level) if level <= last else None


def since(first: int, check: Check) -> Check:
    return lambda node, level: check(node, level) if level >= first else None


def between(first: int, last: int, check: Check) -> Check:
    return since(first, until(last, check))


def input_is(*dtypes: str, at: int = 0, fix: str = QUANTIZE) -> Check:
    def check(node: Node, level: int) -> Refusal | None:
        tensor = node.input(at)
        if tensor.dtype in dtypes:
            return None
        return Refusal(f"input {at} is {told(tensor)}, and may be {', '.join(dtypes)}", fix)

    return check


def output_is(*dtypes: str, fix: str = QUANTIZE) -> Check:
    def check(node: Node, level: int) -> Refusal | None:
        tensor = node.outputs[0]
        if tensor.dtype in dtypes:
            return None
        return Refusal(f"its output is {told(tensor)}, and may be {', '.join(dtypes)}", fix)

    return check


def rank(most: int, *inputs: int, least: int = 0) -> Check:
    def check(node: Node, level: int) -> Refusal | None:
        for at in inputs:
            tensor = node.input(at)
            if not least <= len(tensor.shape) <= most:
                ranks = f"at most {most} dimensions" if not least else f"{least} to {most} dimensions"
                return Refusal(f"input {at} is {told(tensor)}, and may have {ranks}", "Reshape around it.")
        return None

    return check


def output_rank(most: int = 99, least: int = 0) -> Check:
    def check(node: Node, level: int) -> Refusal | None:
        tensor = node.outputs[0]
        if least <= len(tensor.shape) <= most:
            return None
        ranks = f"at most {most} dimensions" if not least else "at least one dimension"
        return Refusal(f"its output is {told(tensor)}, and must have {ranks}", "Reshape around it.")

    return check


def constant(at: int, what: str, *dtypes: str) -> Check:
    def check(node: Node, level: int) -> Refusal | None:
        tensor = node.inputs[at] if at < len(node.inputs) else None
        if tensor is not None and tensor.is_constant and (not dtypes or tensor.dtype in dtypes):
            return None
        must = f"a constant of {dtypes[0]}" if dtypes else "a constant"
        return Refusal(f"{what} (input {at}) must be {must}", "Export with static shapes.")

    return check


def input_count(*counts: int, why: str, fix: str) -> Check:
    def check(node: Node, level: int) -> Refusal | None:
        return None if len(node.inputs) in counts else Refusal(why, fix)

    return check


def no_activation(*dtypes: str) -> Check:
    """For these dtypes, for all where none are named."""

    def check(node: Node, level: int) -> Refusal | None:
        if dtypes and node.input(0).dtype not in dtypes:
            return None
        if not node.option("fused_activation_function"):
            return None
        return Refusal("an activation is fused into it", "Keep the activation apart.")

    return check
