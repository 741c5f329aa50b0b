"""The structure of .tflite files. The schema that ai-edge-litert brings is the oracle."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import flatbuffers
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given, settings
from hypothesis import strategies as st

from delegates.graph import Quantization
from rpi_runtime.errors import BundleError, ResourceError
from rpi_runtime.manifest import Signature, Tensor
from rpi_runtime.tflite_file import CONTROL_EDGES, Buffer, TfliteFile, parse, read
from rpi_runtime.tflite_names import DTYPES, OPERATORS, OPTIONS, OptionField
from tests.runtime import tiny_bundle


class Classifier(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 3, stride=2)
        self.head = torch.nn.Linear(8, 4)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.stem(images.permute(0, 3, 1, 2)).mean((2, 3))
        return {"features": features, "logits": self.head(features)}


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small graph made by litert-torch, with two signatures that share weights."""
    from converters.lowering import Traced, lower

    path = tmp_path_factory.mktemp("tflite") / "classifier.tflite"
    module = Classifier().eval().requires_grad_(False)
    lower([Traced(f"tile_{n}", module, {"images": torch.zeros(1, n, n, 3)}) for n in (16, 32)], path)
    return path


# Real files


def test_signatures_have_the_names_and_shapes_that_were_exported(exported: Path) -> None:
    def signature(side: int) -> Signature:
        outputs = (Tensor("features", (1, 8), "float32"), Tensor("logits", (1, 4), "float32"))
        return Signature(f"tile_{side}", (Tensor("images", (1, side, side, 3), "float32"),), outputs)

    graph = read(exported)
    assert graph.bytes == exported.stat().st_size
    found = {
        s.name: Signature(s.name, s.inputs, tuple(sorted(s.outputs, key=lambda t: t.name)))
        for s in graph.signatures
    }
    assert found == {"tile_16": signature(16), "tile_32": signature(32)}


def test_signatures_that_share_weights_share_buffers(exported: Path) -> None:
    graph = read(exported)
    weights = [{t.buffer for t in g.tensors if graph.buffers[t.buffer].bytes > 100} for g in graph.subgraphs]
    assert len(weights) == 2
    assert weights[0] == weights[1] != set()


def test_it_reads_what_the_schema_reads(exported: Path) -> None:
    assert_like_the_schema(exported)


@pytest.mark.weights
def test_it_reads_graphs_of_others_as_the_schema_does(fetch_weights: ModuleType) -> None:
    try:
        folder = fetch_weights.fetch("face-graphs")
    except ResourceError as error:
        pytest.skip(error.message)
    files = sorted(folder.rglob("*.tflite"))
    assert len(files) == 7
    for path in files:
        assert_like_the_schema(path)


def assert_like_the_schema(path: Path) -> None:
    graph, content = read(path, details=True), path.read_bytes()
    model = schema.Model.GetRootAs(content, 0)
    assert graph.description == text(model.Description())
    assert len(graph.subgraphs) == model.SubgraphsLength()
    assert graph.metadata == tuple(text(model.Metadata(i).Name()) for i in range(model.MetadataLength()))
    for i, buffer in enumerate(graph.buffers):
        expected = model.Buffers(i)
        if expected.Offset() > 1:  # behind the flatbuffer
            held = content[expected.Offset() : expected.Offset() + expected.Size()]
        else:
            held = expected.DataAsNumpy().tobytes() if expected.DataLength() else b""
        assert content[buffer.offset_bytes : buffer.offset_bytes + buffer.bytes] == held
    for i, subgraph in enumerate(graph.subgraphs):
        oracle = model.Subgraphs(i)
        assert subgraph.name == text(oracle.Name())
        assert subgraph.inputs == tuple(oracle.InputsAsNumpy())
        assert subgraph.outputs == tuple(oracle.OutputsAsNumpy())
        assert len(subgraph.tensors) == oracle.TensorsLength()
        for j, tensor in enumerate(subgraph.tensors):
            expected = oracle.Tensors(j)
            shape = tuple(expected.ShapeAsNumpy()) if expected.ShapeLength() else ()
            assert (tensor.name, tensor.shape) == (text(expected.Name()), shape)
            assert (tensor.dtype, tensor.buffer) == (DTYPES[expected.Type()][0], expected.Buffer())
            assert tensor.is_constant == (graph.buffers[expected.Buffer()].bytes > 0)
            assert tensor.quantization == quantization_of(expected)
        assert len(subgraph.operators) == oracle.OperatorsLength()
        for j, operator in enumerate(subgraph.operators):
            expected = oracle.Operators(j)
            code = model.OperatorCodes(expected.OpcodeIndex())
            number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
            assert operator.name == (text(code.CustomCode()) if number == 32 else OPERATORS[number])
            assert operator.inputs == tuple(expected.InputsAsNumpy())
            assert operator.outputs == tuple(expected.OutputsAsNumpy())
            assert operator.version == code.Version()
            assert operator.options == options_of(expected)
    assert len(graph.signatures) == model.SignatureDefsLength()
    for i, signature in enumerate(graph.signatures):
        oracle = model.SignatureDefs(i)
        assert (signature.name, graph.signature_subgraphs[i]) == (
            text(oracle.SignatureKey()),
            oracle.SubgraphIndex(),
        )
        assert [t.name for t in signature.inputs] == [
            text(oracle.Inputs(j).Name()) for j in range(oracle.InputsLength())
        ]
        assert [t.name for t in signature.outputs] == [
            text(oracle.Outputs(j).Name()) for j in range(oracle.OutputsLength())
        ]


def quantization_of(tensor: schema.Tensor) -> Quantization | None:
    held = tensor.Quantization()
    if held is None or not held.ScaleLength():
        return None
    zero_point = held.ZeroPoint(0) if held.ZeroPointLength() else 0
    return Quantization(held.Scale(0), zero_point, held.ScaleLength(), held.QuantizedDimension())


OPTION_CLASSES = {code: name for name, code in vars(schema.BuiltinOptions).items() if isinstance(code, int)}


def camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def options_of(operator: schema.Operator) -> dict[str, Any]:
    code, table = operator.BuiltinOptionsType(), operator.BuiltinOptions()
    if table is None:
        return {}
    options = getattr(schema, OPTION_CLASSES[code])()
    options.Init(table.Bytes, table.Pos)

    def value(field: OptionField) -> Any:
        name = camel(field.name)
        if not field.is_vector:
            return getattr(options, name)()
        count = getattr(options, f"{name}Length")()
        return tuple(getattr(options, name)(i) for i in range(count))

    return {field.name: value(field) for field in OPTIONS.get(code, ())}


def text(value: bytes | None) -> str:
    return value.decode() if value else ""


def test_operators_and_dtypes_have_the_numbers_of_the_schema() -> None:
    def numbered(enum: type) -> dict[int, str]:
        return {v: k for k, v in vars(enum).items() if not k.startswith("_")}

    assert dict(enumerate(OPERATORS)) == numbered(schema.BuiltinOperator)
    assert {i: name.upper() for i, (name, _) in enumerate(DTYPES)} == numbered(schema.TensorType)


# Files that exporters seldom write


def model(**changes: Any) -> schema.ModelT:
    """One subgraph: `sum` = ADD(`image` [1, 4] float32, `weight` [4] float32 in buffer 1)."""
    made = schema.ModelT()
    made.version, made.description = 3, "made by hand"
    made.buffers = [schema.BufferT(), schema.BufferT()]
    made.buffers[1].data = list(struct.pack("<4f", 1, 2, 3, 4))
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.ADD
    made.operatorCodes = [code]
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [0, 1], [2]
    graph = schema.SubGraphT()
    graph.name, graph.inputs, graph.outputs, graph.operators = "main", [0], [2], [operator]
    graph.tensors = [tensor("image", [1, 4], 0), tensor("weight", [4], 1), tensor("sum", [1, 4], 0)]
    made.subgraphs = [graph]
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def tensor(
    name: str, shape: list[int], buffer: int, dtype: int = schema.TensorType.FLOAT32
) -> schema.TensorT:
    made = schema.TensorT()
    made.name, made.shape, made.buffer, made.type = name, shape, buffer, dtype
    return made


def packed(made: schema.ModelT) -> bytes:
    builder = flatbuffers.Builder(1024)
    builder.Finish(made.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def test_a_custom_operator_keeps_its_own_name() -> None:
    made = model()
    made.operatorCodes[0].builtinCode = made.operatorCodes[0].deprecatedBuiltinCode = 32
    made.operatorCodes[0].customCode = "MaxPoolingWithArgmax2D"
    assert parse(packed(made), "it").subgraphs[0].operators[0].name == "MaxPoolingWithArgmax2D"


def test_an_operator_newer_than_this_reader_is_numbered() -> None:
    made = model()
    made.operatorCodes[0].builtinCode = 4711
    assert parse(packed(made), "it").subgraphs[0].operators[0].name == "UNKNOWN_4711"


@pytest.mark.parametrize("code", OPTIONS, ids=OPTION_CLASSES.__getitem__)
def test_options_have_the_fields_and_defaults_of_the_schema(code: int) -> None:
    kind = getattr(schema, f"{OPTION_CLASSES[code]}T")
    defaults, set_ones = kind(), kind()
    values: dict[str, Any] = {}
    for number, field in enumerate(OPTIONS[code]):
        attribute = camel(field.name)[0].lower() + camel(field.name)[1:]
        default = getattr(defaults, attribute)
        assert (default or 0) == field.default
        values[field.name] = {"?": not default, "f": number + 0.5}.get(field.code, number + 3)
        if field.is_vector:
            values[field.name] = (number, 7)
        setattr(set_ones, attribute, values[field.name])
    made = model()
    operator = made.subgraphs[0].operators[0]
    operator.builtinOptionsType = code
    for options, expected in (
        (set_ones, values),
        (defaults, {f.name: () if f.is_vector else f.default for f in OPTIONS[code]}),
    ):
        operator.builtinOptions = options
        (found,) = parse(packed(made), "it", details=True).subgraphs[0].operators
        assert found.options == expected
    (plain,) = parse(packed(made), "it").subgraphs[0].operators
    assert plain.options == {}


def test_a_quantised_tensor_tells_its_scale_and_how_many_there_are() -> None:
    made = model()
    held = schema.QuantizationParametersT()
    held.scale, held.zeroPoint, held.quantizedDimension = [0.5, 0.25, 2.0], [3, 0, 0], 1
    made.subgraphs[0].tensors[1].quantization = held
    image, weight, _ = parse(packed(made), "it", details=True).subgraphs[0].tensors
    assert (image.quantization, image.is_constant) == (None, False)
    assert (weight.quantization, weight.is_constant) == (Quantization(0.5, 3, 3, 1), True)
    assert parse(packed(made), "it").subgraphs[0].tensors[1].quantization is None


def test_optional_inputs_may_be_left_out_and_outputs_may_not() -> None:
    made = model()
    made.subgraphs[0].operators[0].inputs = [0, -1]
    assert parse(packed(made), "it").subgraphs[0].operators[0].inputs == (0, -1)
    made.subgraphs[0].operators[0].outputs = [-1]
    with pytest.raises(BundleError, match="an output of ADD"):
        parse(packed(made), "it")


def test_data_behind_the_flatbuffer_of_a_file_over_2_gb_is_found() -> None:
    made = model()
    made.buffers[1].data, made.buffers[1].offset, made.buffers[1].size = None, 1 << 40, 16
    size = len(packed(made))
    made.buffers[1].offset = size
    content = packed(made) + struct.pack("<4f", 1, 2, 3, 4)
    assert parse(content, "it").buffers[1] == Buffer(size, 16, is_inside=False)
    with pytest.raises(BundleError, match="reaches beyond the end"):
        parse(content[:-1], "it")


def with_edges(data: bytes) -> bytes:
    """The model, whose one operator the metadata orders."""
    made = model(metadata=metadata_in_buffer(2))
    made.metadata[0].name = CONTROL_EDGES
    made.buffers.append(schema.BufferT())
    made.buffers[2].data = list(data)
    return packed(made)


def test_control_edges_are_read_from_the_metadata() -> None:
    """Varints, zigzag: version 1, one subgraph, one edge."""
    held = with_edges(bytes((1, 1, 1, 0, 0)))
    assert parse(held, "it", details=True).subgraphs[0].control_edges == ((0, 0),)
    assert parse(held, "it").subgraphs[0].control_edges == ()


@pytest.mark.parametrize(
    "data", [b"", b"\2\1\0", b"\1\2\0\0", b"\1\1\1\0\2", b"\1\1\1\0\1", b"\1\1\2\0\0", b"\1\1" + b"\xff" * 20]
)
def test_control_edges_that_make_no_sense_are_told(data: bytes) -> None:
    with pytest.raises(BundleError, match=f"its {CONTROL_EDGES} "):
        parse(with_edges(data), "it", details=True)


@dataclass(frozen=True)
class Broken:
    change: Callable[[schema.ModelT], None]
    says: str


def put(path: str, value: object) -> Callable[[schema.ModelT], None]:
    """Sets `model.<path>`, where the path may index lists: "subgraphs[0].inputs"."""

    def change(made: schema.ModelT) -> None:
        parts = path.replace("[", ".").replace("]", "").split(".")
        at: Any = made
        for part in parts[:-1]:
            at = at[int(part)] if part.isdigit() else getattr(at, part)
        setattr(at, parts[-1], value)

    return change


def signature_of_subgraph(index: int, tensor_index: int) -> list[schema.SignatureDefT]:
    definition, entry = schema.SignatureDefT(), schema.TensorMapT()
    entry.name, entry.tensorIndex = "image", tensor_index
    definition.signatureKey, definition.subgraphIndex, definition.inputs = "run", index, [entry]
    return [definition]


def metadata_in_buffer(index: int) -> list[schema.MetadataT]:
    entry = schema.MetadataT()
    entry.name, entry.buffer = "note", index
    return [entry]


def external_group() -> list[schema.ExternalBufferGroupT]:
    group = schema.ExternalBufferGroupT()
    group.name = "../../etc/passwd"
    return [group]


BROKEN = {
    "version": Broken(put("version", 4), "schema version 4"),
    "no subgraph": Broken(put("subgraphs", []), "no subgraph"),
    "weights elsewhere": Broken(put("externalBufferGroups", external_group()), "in other files"),
    "opcode": Broken(put("subgraphs[0].operators[0].opcodeIndex", 1), "code 1 of 1"),
    "operator input": Broken(put("subgraphs[0].operators[0].inputs", [0, 3]), "of ADD is number 3 of 3"),
    "operator output": Broken(put("subgraphs[0].operators[0].outputs", [9]), "of ADD is number 9 of 3"),
    "operator options": Broken(put("subgraphs[0].operators[0].largeCustomOptionsOffset", 1 << 33), "options"),
    "subgraph input": Broken(put("subgraphs[0].inputs", [-1]), "an input of a subgraph"),
    "subgraph output": Broken(put("subgraphs[0].outputs", [3]), "an output of a subgraph"),
    "buffer": Broken(put("subgraphs[0].tensors[1].buffer", 2), "'weight' has buffer 2 of 2"),
    "shape": Broken(put("subgraphs[0].tensors[0].shape", [1, -4]), r"'image' has shape \(1, -4\)"),
    "dtype": Broken(put("subgraphs[0].tensors[0].type", 99), "data type 99"),
    "too little data": Broken(put("subgraphs[0].tensors[1].shape", [5]), r"float32 \[5\], has only 16 bytes"),
    "signature's subgraph": Broken(put("signatureDefs", signature_of_subgraph(1, 0)), "subgraph 1 of 1"),
    "signature's tensor": Broken(put("signatureDefs", signature_of_subgraph(0, 3)), "number 3 of 3"),
    "metadata": Broken(put("metadata", metadata_in_buffer(2)), "metadata entry is number 2 of 2"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_an_index_or_size_that_does_not_fit_is_named(what: str) -> None:
    made = model()
    parse(packed(made), "good.tflite")
    BROKEN[what].change(made)
    with pytest.raises(BundleError, match=BROKEN[what].says) as error:
        parse(packed(made), "bad.tflite")
    assert "bad.tflite is damaged" in error.value.message
    assert error.value.remedy


@pytest.mark.parametrize(("dtype", "bits"), [("int4", 4), ("int2", 2), ("int8", 8), ("float16", 16)])
def test_packed_data_counts_by_its_bits(dtype: str, bits: int) -> None:
    made = model()
    code = [name for name, _ in DTYPES].index(dtype)
    made.subgraphs[0].tensors[1] = tensor("weight", [7, 3], 1, code)
    made.buffers[1].data = list(bytes(math.ceil(21 * bits / 8)))
    parse(packed(made), "it")
    made.buffers[1].data = made.buffers[1].data[:-1]
    with pytest.raises(BundleError, match="bytes of data"):
        parse(packed(made), "it")


# Hostile files


def test_tables_that_are_shared_a_million_times_end_early() -> None:
    """A file of 100 kB that would otherwise ask for 10^8 tensors."""
    builder = flatbuffers.Builder(1 << 17)
    name = builder.CreateString("t")
    schema.TensorStart(builder)
    schema.TensorAddName(builder, name)
    one_tensor = schema.TensorEnd(builder)
    tensors = vector_of(builder, one_tensor, 10_000)
    schema.SubGraphStart(builder)
    schema.SubGraphAddTensors(builder, tensors)
    one_graph = schema.SubGraphEnd(builder)
    graphs = vector_of(builder, one_graph, 10_000)
    schema.ModelStart(builder)
    schema.ModelAddVersion(builder, 3)
    schema.ModelAddSubgraphs(builder, graphs)
    builder.Finish(schema.ModelEnd(builder), b"TFL3")
    with pytest.raises(BundleError, match="more parts than any graph needs"):
        parse(bytes(builder.Output()), "it")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (struct.pack("<I4s", 0, b"TFL3"), "the offset at byte 0 leads to 0"),
        (struct.pack("<I4sI", 9, b"TFL3", 0), "the offset at byte 0 leads to 9"),
        (struct.pack("<I4sI", 400, b"TFL3", 0), "the offset at byte 0 leads to 400"),
        # Python would take a negative position from the end.
        (struct.pack("<I4si8s", 8, b"TFL3", 24, b""), "a vtable lies at byte -16"),
        (struct.pack("<I4si8s", 8, b"TFL3", -40, b""), "a vtable lies at byte 48"),
        (struct.pack("<I4siHHHH", 8, b"TFL3", -4, 6, 8, 8, 0), "points outside its table"),
        (struct.pack("<I4siHHHH", 8, b"TFL3", -4, 4, 99, 0, 0), "the table at byte 8 reaches beyond the end"),
        (struct.pack("<I4siHHHH", 8, b"TFL3", -4, 5, 8, 0, 0), "the vtable at byte 12 has 5 bytes"),
    ],
)
def test_an_offset_that_leads_astray_is_named(content: bytes, says: str) -> None:
    with pytest.raises(BundleError, match=says):
        parse(content, "it")


def vector_of(builder: flatbuffers.Builder, table: int, count: int) -> int:
    builder.StartVector(4, count, 4)
    for _ in range(count):
        builder.PrependUOffsetTRelative(table)
    return builder.EndVector()


def small() -> bytes:
    made = model(signatureDefs=signature_of_subgraph(0, 0), metadata=metadata_in_buffer(1))
    operator, weight = made.subgraphs[0].operators[0], made.subgraphs[0].tensors[1]
    operator.builtinOptionsType, operator.builtinOptions = 17, schema.ReshapeOptionsT()
    operator.builtinOptions.newShape = [1, 4]
    weight.quantization = schema.QuantizationParametersT()
    weight.quantization.scale, weight.quantization.zeroPoint = [0.5], [0]
    return packed(made)


SMALL = small()


def structural_bytes(content: bytes) -> Iterator[int]:
    """All but the mark TFL3, whose change is found at once."""
    return (i for i in range(len(content)) if not 4 <= i < 8)


def test_every_changed_byte_ends_in_a_graph_or_a_bundle_error() -> None:
    refused = 0
    for at in structural_bytes(SMALL):
        for value in {0, 1, 0x7F, 0x80, 0xFF, SMALL[at] ^ 1, SMALL[at] ^ 4} - {SMALL[at]}:
            try:
                parse(SMALL[:at] + bytes([value]) + SMALL[at + 1 :], "it", details=True)
            except BundleError:
                refused += 1
    assert refused > 500


WORDS = st.sampled_from([0, 1, 4, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFFFFFC]) | st.integers(0, 400)


@settings(max_examples=500, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(8, len(SMALL) - 4), WORDS), min_size=1, max_size=8))
def test_random_words_anywhere_end_in_a_graph_or_a_bundle_error(changes: list[tuple[int, int]]) -> None:
    content = bytearray(SMALL)
    for at, word in changes:
        content[at : at + 4] = struct.pack("<I", word)
    parse_or_refuse(bytes(content))


@settings(max_examples=300, deadline=None)
@given(body=st.binary(max_size=400), root=st.integers(0, 100))
def test_random_bytes_end_in_a_bundle_error(body: bytes, root: int) -> None:
    parse_or_refuse(struct.pack("<I", root) + b"TFL3" + body)


def parse_or_refuse(content: bytes) -> TfliteFile | None:
    try:
        return parse(content, "it", details=True)
    except BundleError:
        return None


def test_a_real_file_cut_anywhere_is_refused(exported: Path) -> None:
    content = exported.read_bytes()
    for length in [*range(0, len(content), 97), len(content) - 1]:
        with pytest.raises(BundleError):
            parse(content[:length], "it")


def test_damage_anywhere_in_a_real_file_ends_in_a_graph_or_a_bundle_error(exported: Path) -> None:
    content = exported.read_bytes()
    for at in range(8, len(content), 3):
        parse_or_refuse(content[:at] + bytes([content[at] ^ 0x41]) + content[at + 1 :])


# Files that are none


def test_what_is_no_tflite_file_is_named_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "empty.tflite").touch()
    (tmp_path / "text.tflite").write_text("not a graph at all")
    (tmp_path / "short.tflite").write_bytes(b"TFL3")
    cases = {
        "empty": "is empty",
        "text": "lacks the mark TFL3",
        "short": "lacks the mark",
        "absent": "cannot be read",
    }
    for name, says in cases.items():
        with pytest.raises(BundleError, match=says) as error:
            read(tmp_path / f"{name}.tflite")
        assert name in error.value.message
        assert error.value.remedy
    with pytest.raises(BundleError, match="cannot be read: Is a directory"):
        read(tmp_path)


def test_a_tiny_bundles_graph_has_the_signatures_it_was_made_with() -> None:
    signatures = (
        Signature(
            "decode", (Tensor("embeddings", (1, 1, 8), "float32"),), (Tensor("logits", (1, 12), "float32"),)
        ),
    )
    assert parse(tiny_bundle.graph(signatures), "it").signatures == signatures
