"""A bundle of a few kilobytes with every kind of file: whole in structure, small in everything else."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import flatbuffers
from ai_edge_litert import schema_py_generated as schema

from rpi_runtime.manifest import (
    DECODER,
    MANIFEST_FILE,
    SCHEMA_VERSION,
    VISION_BASE,
    VISION_LARGE,
    VRC,
    Component,
    DecoderSpec,
    Embedding,
    File,
    Manifest,
    Parity,
    Signature,
    Tensor,
    TextSpec,
    VisionSpec,
    to_json,
)

HIDDEN, VOCAB, CONTEXT = 8, 12, 16
SIDES = (64, 32)


def write(folder: Path) -> Manifest:
    """Writes the bundle into `folder` and returns its manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    components = tuple(_component(folder, name, signatures) for name, signatures in _signatures().items())
    (folder / "embedding.int8").write_bytes(bytes(range(VOCAB * HIDDEN)))
    (folder / "embedding.scales").write_bytes(struct.pack("<20f", *range(1, 13), *[1] * 8))
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0, "b": 1}}}')
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        model="tiny",
        source_sha256="0" * 64,
        tools={"litert-torch": "0.10.0"},
        components=components,
        text=TextSpec(entry(folder, "tokenizer.json"), entry(folder, "chat_template.jinja"), (1,)),
        decoder=DecoderSpec(1, 1, 4, HIDDEN, VOCAB, 10000.0, (CONTEXT,), (4,), "float32"),
        embedding=Embedding(
            entry(folder, "embedding.int8"), "int8", VOCAB, HIDDEN, scales=entry(folder, "embedding.scales")
        ),
        vision=VisionSpec(64, SIDES, 4, True, 16, (0.5, 1.0), 32, 0.5),
    )
    (folder / MANIFEST_FILE).write_text(to_json(manifest))
    return manifest


def entry(folder: Path, name: str) -> File:
    content = (folder / name).read_bytes()
    return File(name, hashlib.sha256(content).hexdigest(), len(content))


def _signatures() -> dict[str, tuple[Signature, ...]]:
    def tile(side: int) -> Signature:
        tokens = (side // 16) ** 2
        return Signature(
            f"tile_{side}", (_t("images", 1, side, side, 3),), (_t("visual_tokens", 1, tokens, HIDDEN),)
        )

    def step(name: str, tokens: int, *outputs: Tensor) -> Signature:
        cache = _t("kv_k_0", 4 * CONTEXT), _t("kv_v_0", 4 * CONTEXT)
        new = _t("k_0", 1, 1, tokens, 4), _t("v_0", 1, 1, tokens, 4)
        return Signature(name, (_t("embeddings", 1, tokens, HIDDEN), *cache), (*new, *outputs))

    vision = tuple(tile(side) for side in SIDES)
    return {
        VRC: (Signature("route", (_t("images", 1, 32, 32, 3),), (_t("scale_logits", 1, 2),)),),
        VISION_BASE: vision,
        VISION_LARGE: vision,
        DECODER: (step("prefill_4", 4), step("decode", 1, _t("logits", 1, VOCAB))),
    }


def _t(name: str, *shape: int) -> Tensor:
    return Tensor(name, shape, "float32")


def _component(folder: Path, name: str, signatures: tuple[Signature, ...]) -> Component:
    (folder / f"{name}.tflite").write_bytes(graph(signatures))
    parity = tuple(Parity(s.name, 2, 0.9999, 40.0, 0.001, True, "cosine >= 0.99") for s in signatures)
    (folder / f"{name}.sample.npz").write_bytes(b"of " + name.encode())
    files = entry(folder, f"{name}.tflite"), entry(folder, f"{name}.sample.npz")
    return Component(name, files[0], "int8", 8.1, "cpu", signatures, parity, files[1], 0.99)


def graph(signatures: tuple[Signature, ...]) -> bytes:
    """A .tflite file with these signatures, a subgraph each, and one constant that all of them hold."""
    model = schema.ModelT()
    model.version = 3
    model.buffers = [schema.BufferT(), schema.BufferT()]
    model.buffers[1].data = list(b"weights!" * 8)
    model.operatorCodes = []
    model.subgraphs, model.signatureDefs = [], []
    for index, signature in enumerate(signatures):
        subgraph, definition = schema.SubGraphT(), schema.SignatureDefT()
        subgraph.name, subgraph.operators = signature.name, []
        subgraph.tensors = [_tensor("weight", (16,), 1)]
        definition.signatureKey, definition.subgraphIndex = signature.name, index
        subgraph.inputs, definition.inputs = _add(subgraph.tensors, signature.inputs)
        subgraph.outputs, definition.outputs = _add(subgraph.tensors, signature.outputs)
        model.subgraphs.append(subgraph)
        model.signatureDefs.append(definition)
    builder = flatbuffers.Builder(4096)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _add(
    tensors: list[schema.TensorT], added: tuple[Tensor, ...]
) -> tuple[list[int], list[schema.TensorMapT]]:
    indexes, maps = [], []
    for tensor in added:
        indexes.append(len(tensors))
        tensors.append(_tensor(tensor.name, tensor.shape, 0))
        entry = schema.TensorMapT()
        entry.name, entry.tensorIndex = tensor.name, indexes[-1]
        maps.append(entry)
    return indexes, maps


def _tensor(name: str, shape: tuple[int, ...], buffer: int) -> schema.TensorT:
    made = schema.TensorT()
    made.name, made.shape, made.buffer, made.type = name, list(shape), buffer, schema.TensorType.FLOAT32
    return made
