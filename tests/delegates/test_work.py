"""How much a graph multiplies. PyTorch's own counter is the oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from delegates.graph import GraphTensor, Node, Operator
from delegates.work import multiply_adds, tensor_bytes
from hypervl.model import HyperVL
from rpi_runtime.bundle import Bundle
from rpi_runtime.tflite_file import read


def tensor(*shape: int, dtype: str = "float32") -> GraphTensor:
    return GraphTensor("t", shape, dtype, 0)


def node(name: str, *inputs: GraphTensor, output: GraphTensor, **options: Any) -> Node:
    operator = Operator(name, tuple(range(len(inputs))), (len(inputs),), 1, options)
    return Node(0, operator, inputs, (output,))


def test_matrix_products_count_each_pair_once() -> None:
    layer = node("FULLY_CONNECTED", tensor(5, 16), tensor(8, 16), output=tensor(5, 8))
    assert multiply_adds(layer) == 5 * 8 * 16
    product = node("BATCH_MATMUL", tensor(2, 5, 16), tensor(2, 16, 8), output=tensor(2, 5, 8))
    assert multiply_adds(product) == 2 * 5 * 8 * 16
    turned = node("BATCH_MATMUL", tensor(2, 16, 5), tensor(2, 16, 8), output=tensor(2, 5, 8), adj_x=True)
    assert multiply_adds(turned) == 2 * 5 * 8 * 16


def test_convolutions_count_their_window() -> None:
    assert (
        multiply_adds(node("CONV_2D", tensor(1, 8, 8, 3), tensor(16, 3, 3, 3), output=tensor(1, 4, 4, 16)))
        == 16 * 16 * 27
    )
    assert (
        multiply_adds(
            node("DEPTHWISE_CONV_2D", tensor(1, 8, 8, 6), tensor(1, 3, 3, 6), output=tensor(1, 8, 8, 6))
        )
        == 64 * 6 * 9
    )
    shape = tensor(4, dtype="int32")
    transposed = node(
        "TRANSPOSE_CONV", shape, tensor(2, 2, 2, 6), tensor(1, 4, 4, 6), output=tensor(1, 8, 8, 2)
    )
    assert multiply_adds(transposed) == 16 * 6 * 2 * 4


def test_what_multiplies_no_matrices_and_what_lacks_shapes_counts_nothing() -> None:
    assert multiply_adds(node("ADD", tensor(4), tensor(4), output=tensor(4))) == 0
    assert multiply_adds(node("FULLY_CONNECTED", tensor(4), tensor(4), output=tensor(4))) == 0
    assert multiply_adds(node("CONV_2D", output=tensor(4))) == 0


def test_bytes_of_packed_types() -> None:
    kinds = {"float32": 40, "float16": 20, "int4": 5, "bool": 10, "int64": 80}
    assert {dtype: tensor_bytes(tensor(10, dtype=dtype)) for dtype in kinds} == kinds
    assert tensor_bytes(tensor(3, dtype="int4")) == 2


def test_of_our_graphs_as_many_as_pytorch_counts(routing_model: HyperVL, nano_bundle: Path) -> None:
    bundle = Bundle.open(nano_bundle)
    for name, module, side in (
        ("vrc", routing_model.vrc, routing_model.config.vrc.image_size),
        ("vision_base", routing_model.vision_base, 192),
        ("vision_large", routing_model.vision_large, 192),
    ):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module.eval()(torch.zeros(1, side, side, 3))
        graph = read(bundle.path(name), details=True)
        found = [sum(multiply_adds(node) for node in subgraph.nodes()) for subgraph in graph.subgraphs]
        assert max(found) == counter.get_total_flops() // 2
