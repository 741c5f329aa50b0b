"""Reads the structure of a .tflite file without native code: signatures, subgraphs, tensors, operators,
buffers.

The file is mapped, and weights are never touched: of constants, only axes, sizes and the like are read. Every
offset, length and index is checked before it is followed, and the work is bounded, so that a damaged or
hostile file ends in a `BundleError` and nothing else.
The layout is that of TFLite's schema version 3 (`schema.fbs`); field numbers below count its fields from 0.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from delegates.graph import GraphTensor, Operator, Quantization, Subgraph
from rpi_runtime.errors import BundleError
from rpi_runtime.manifest import Signature, Tensor
from rpi_runtime.tflite_names import BLOCKWISE, CUSTOM, DTYPES, OPERATORS, OPTIONS

# A bound on the work: tables read, plus an eighth of all numbers and a 64th of all characters. Vectors may
# share tables, so a small hostile file could otherwise ask for billions of them. A decoder of 28 layers with
# five signatures takes about 130,000.
MAX_STEPS = 500_000
_SMALL_BYTES = 64  # of a constant whose values are details
_MOST_EDGES_BYTES = 1 << 16
CONTROL_EDGES = "model_control_dependencies"  # metadata: operators that must run before others
_AGAIN = "Convert the checkpoint again, or copy the file again."
_T = TypeVar("_T")


@dataclass(frozen=True)
class Buffer:
    """Where constant data lies in the file; both 0 for none."""

    offset_bytes: int
    bytes: int
    is_inside: bool = True  # of the FlatBuffer, not behind it


@dataclass(frozen=True)
class TfliteFile:
    bytes: int
    description: str
    signatures: tuple[Signature, ...]
    signature_subgraphs: tuple[int, ...]  # the subgraph of each signature
    subgraphs: tuple[Subgraph, ...]
    buffers: tuple[Buffer, ...]
    metadata: tuple[str, ...]  # names


def read(path: str | os.PathLike[str], *, details: bool = False) -> TfliteFile:
    """Reads the graph at `path`, with `details` also options of operators and quantisation of tensors.
    Raises `BundleError` for anything that is not a whole .tflite file."""
    name = os.fspath(path)
    try:
        with Path(path).open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise BundleError(f"{name} is empty", _AGAIN)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return parse(data, name, details=details)
    except (OSError, ValueError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BundleError(f"{name} cannot be read: {reason}", "Check the path of the .tflite file.") from None


def parse(data: bytes | mmap.mmap, name: str, *, details: bool = False) -> TfliteFile:
    """Like `read`, for the file's content; `name` is what errors call it."""
    if len(data) < 8 or data[4:8] != b"TFL3":
        raise BundleError(f"{name} is not a .tflite file (it lacks the mark TFL3)", "Name a .tflite file.")
    flat = _FlatBuffer(data)
    try:
        return _model(flat, flat.table(flat.follow(0)), details)
    except (_Malformed, struct.error) as error:  # struct.error: a read beyond the end
        raise BundleError(f"{name} is damaged: {error}", _AGAIN) from None


class _Malformed(Exception):
    pass


def _fail(what: str) -> NoReturn:
    raise _Malformed(what)


_UINT32 = struct.Struct("<I")
_INT32 = struct.Struct("<i")
_UINT16_PAIR = struct.Struct("<HH")
_NUMBERS = {code: struct.Struct("<" + code) for code in "?bBiIfqQ"}


class _FlatBuffer:
    """Checked access to the tables of a FlatBuffer. Positions are bytes from its start."""

    def __init__(self, data: bytes | mmap.mmap) -> None:
        self.data = data
        self.bytes = len(data)
        self._steps_left = MAX_STEPS
        # vtable position -> (bytes of its tables, offset of each field or 0). Tables share vtables.
        self._vtables: dict[int, tuple[int, tuple[int, ...]]] = {}

    def follow(self, position: int) -> int:
        """The position that the unsigned offset at `position` points to."""
        return self.target(position, _UINT32.unpack_from(self.data, position)[0])

    def target(self, position: int, offset: int) -> int:
        """The position that is `offset` behind `position`, where a table, vector or text must begin."""
        target = position + offset
        if offset == 0 or target > self.bytes - 4 or target & 3:
            _fail(f"the offset at byte {position} leads to {target}")
        return target

    def table(self, position: int) -> _Table:
        self._take(1)
        vtable = position - _INT32.unpack_from(self.data, position)[0]
        if vtable not in self._vtables:
            self._vtables[vtable] = self._read_vtable(vtable)
        inline_bytes, fields = self._vtables[vtable]
        if position + inline_bytes > self.bytes:
            _fail(f"the table at byte {position} reaches beyond the end")
        return _Table(self, position, fields)

    def _read_vtable(self, position: int) -> tuple[int, tuple[int, ...]]:
        if not 0 <= position <= self.bytes - 4 or position & 1:
            _fail(f"a vtable lies at byte {position}")
        vtable_bytes, inline_bytes = _UINT16_PAIR.unpack_from(self.data, position)
        if vtable_bytes < 4 or vtable_bytes & 1 or inline_bytes < 4:
            _fail(f"the vtable at byte {position} has {vtable_bytes} bytes")
        count = (vtable_bytes - 4) // 2
        self._take(1 + (count >> 3))
        fields = struct.unpack_from(f"<{count}H", self.data, position + 4)
        if any(0 < field < 4 or field >= inline_bytes for field in fields):
            _fail(f"the vtable at byte {position} points outside its table")
        return inline_bytes, fields

    def vector(self, position: int, code: str) -> tuple[int, ...]:
        """The numbers of the vector at `position`; `code` as in `struct`."""
        count: int = _UINT32.unpack_from(self.data, position)[0]
        self._take(1 + (count >> 3))
        return struct.unpack_from(f"<{count}{code}", self.data, position + 4)

    def span(self, position: int) -> tuple[int, int]:
        """Start and length of the byte vector at `position`, whose bytes are not read."""
        count: int = _UINT32.unpack_from(self.data, position)[0]
        if position + 4 + count > self.bytes:
            _fail(f"the {count} bytes at {position + 4} reach beyond the end")
        return position + 4, count

    def string(self, position: int) -> str:
        start, count = self.span(position)
        self._take(1 + (count >> 6))
        try:
            return self.data[start : start + count].decode()
        except UnicodeDecodeError:
            _fail(f"the text at byte {start} is not UTF-8")

    def _take(self, steps: int) -> None:
        self._steps_left -= steps
        if self._steps_left < 0:
            _fail("it has more parts than any graph needs")


class _Table:
    __slots__ = ("_fields", "_flat", "_position")

    def __init__(self, flat: _FlatBuffer, position: int, fields: tuple[int, ...]) -> None:
        self._flat = flat
        self._position = position
        self._fields = fields

    def _at(self, field: int) -> int:
        """Position of the field's value; 0 where it is left out."""
        offset = self._fields[field] if field < len(self._fields) else 0
        return self._position + offset if offset else 0

    def has(self, field: int) -> bool:
        return bool(self._at(field))

    def number(self, field: int, code: str = "i", default: int = 0) -> Any:
        """Of the type that `code` has in `struct`."""
        position = self._at(field)
        return _NUMBERS[code].unpack_from(self._flat.data, position)[0] if position else default

    def first(self, field: int, code: str) -> tuple[int, Any]:
        """Length of the vector in `field`, and its first number, 0 without one. No other is read."""
        position = self._at(field)
        if not position:
            return 0, 0
        start = self._flat.follow(position)
        count: int = _UINT32.unpack_from(self._flat.data, start)[0]
        return count, _NUMBERS[code].unpack_from(self._flat.data, start + 4)[0] if count else 0

    def table(self, field: int) -> _Table | None:
        position = self._at(field)
        return self._flat.table(self._flat.follow(position)) if position else None

    def numbers(self, field: int, code: str = "i") -> tuple[int, ...]:
        position = self._at(field)
        return self._flat.vector(self._flat.follow(position), code) if position else ()

    def text(self, field: int) -> str:
        position = self._at(field)
        return self._flat.string(self._flat.follow(position)) if position else ""

    def bytes_span(self, field: int) -> tuple[int, int]:
        position = self._at(field)
        return self._flat.span(self._flat.follow(position)) if position else (0, 0)

    def tables(self, field: int, build: Callable[[_Table], _T]) -> tuple[_T, ...]:
        """The vector of tables in `field`, each turned into what `build` makes of it."""
        position = self._at(field)
        if not position:
            return ()
        flat = self._flat
        start = flat.follow(position)
        offsets = flat.vector(start, "I")
        return tuple(build(flat.table(flat.target(start + 4 * i, o))) for i, o in enumerate(offsets, 1))


# The schema's tables. Each function names the fields that it reads.


def _model(flat: _FlatBuffer, table: _Table, details: bool) -> TfliteFile:
    version = table.number(0, "I")
    if version != 3:
        _fail(f"it has schema version {version}, not 3")
    if table.tables(8, lambda group: group):
        _fail("it keeps weights in other files, which is not supported")
    buffers = table.tables(4, lambda buffer: _buffer(flat, buffer))
    kinds = table.tables(1, lambda kind: (_operator_name(kind), kind.number(2, "i", 1)))
    subgraphs = table.tables(2, lambda subgraph: _subgraph(flat, subgraph, kinds, buffers, details))
    if not subgraphs:
        _fail("it has no subgraph")
    signatures = table.tables(7, lambda signature: _signature(signature, subgraphs))
    entries = table.tables(6, lambda entry: _metadata(entry, buffers))
    if details:
        for name, number in entries:
            if name == CONTROL_EDGES and buffers[number].is_inside:  # the runtime looks nowhere else
                subgraphs = _ordered(flat, buffers[number], subgraphs)
    return TfliteFile(
        bytes=flat.bytes,
        description=table.text(3),
        signatures=tuple(signature for signature, _ in signatures),
        signature_subgraphs=tuple(index for _, index in signatures),
        subgraphs=subgraphs,
        buffers=buffers,
        metadata=tuple(name for name, _ in entries),
    )


def _buffer(flat: _FlatBuffer, table: _Table) -> Buffer:
    start, count = table.bytes_span(0)
    if not count:
        start, count = table.number(1, "Q"), table.number(2, "Q")
        # Files over 2 GB keep data behind the FlatBuffer; writers put 0 or 1 where there is none.
        if start <= 1 or count == 0:
            return Buffer(0, 0)
        if start + count > flat.bytes:
            _fail(f"a buffer of {count} bytes at {start} reaches beyond the end")
        return Buffer(start, count, is_inside=False)
    return Buffer(start, count)


def _operator_name(table: _Table) -> str:
    # The first 127 codes fit an older, one-byte field; the larger of both is the code.
    code = max(table.number(0, "b"), table.number(3))
    if code == CUSTOM:
        return table.text(1) or "CUSTOM"
    return OPERATORS[code] if 0 <= code < len(OPERATORS) else f"UNKNOWN_{code}"


def _subgraph(
    flat: _FlatBuffer,
    table: _Table,
    kinds: tuple[tuple[str, int], ...],  # name and version
    buffers: tuple[Buffer, ...],
    details: bool,
) -> Subgraph:
    tensors = table.tables(0, lambda tensor: _tensor(flat, tensor, buffers, details))
    count = len(tensors)

    def operator(entry: _Table) -> Operator:
        index = entry.number(0, "I")
        if index >= len(kinds):
            _fail(f"an operator has code {index} of {len(kinds)}")
        start, size = entry.number(9, "Q"), entry.number(10, "Q")
        if start > 1 and start + size > flat.bytes:
            _fail(f"an operator has options at {start}, beyond the end")
        name, version = kinds[index]
        return Operator(
            name,
            _checked(entry.numbers(1), count, f"an input of {name}", optional=True),
            _checked(entry.numbers(2), count, f"an output of {name}"),
            version,
            _options(entry) if details else {},
        )

    return Subgraph(
        name=table.text(4),
        tensors=tensors,
        inputs=_checked(table.numbers(1), count, "an input of a subgraph"),
        outputs=_checked(table.numbers(2), count, "an output of a subgraph"),
        operators=table.tables(3, operator),
    )


def _options(operator: _Table) -> dict[str, Any]:
    fields, table = OPTIONS.get(operator.number(3, "B"), ()), operator.table(4)
    if table is None:
        return {}
    return {
        f.name: table.numbers(f.number, f.code) if f.is_vector else table.number(f.number, f.code, f.default)
        for f in fields
    }


def _tensor(flat: _FlatBuffer, table: _Table, buffers: tuple[Buffer, ...], details: bool) -> GraphTensor:
    name = table.text(3)
    shape = table.numbers(0)
    code = table.number(1, "b")
    buffer = table.number(2, "I")
    if not 0 <= code < len(DTYPES):
        _fail(f"tensor {name!r} has data type {code}")
    if buffer >= len(buffers) and buffer != 0:
        _fail(f"tensor {name!r} has buffer {buffer} of {len(buffers)}")
    if shape and min(shape) < 0:
        _fail(f"tensor {name!r} has shape {shape}")
    dtype, bits = DTYPES[code]
    is_sparse = table.has(6)
    held = buffers[buffer].bytes if buffers else 0
    if held and not is_sparse and held * 8 < bits * math.prod(shape):
        _fail(f"tensor {name!r}, {dtype} {list(shape)}, has only {held} bytes of data")
    scales = table.table(4) if details else None
    values: tuple[int, ...] = ()
    if details and dtype == "int32" and 0 < held <= _SMALL_BYTES and not held % 4:
        values = struct.unpack_from(f"<{held // 4}i", flat.data, buffers[buffer].offset_bytes)
    found = _quantization(scales)
    return GraphTensor(name, shape, dtype, buffer, held > 0, found, _block(scales), values)


def _quantization(table: _Table | None) -> Quantization | None:
    if table is None:
        return None
    channels, scale = table.first(2, "f")
    _, zero_point = table.first(3, "q")
    return Quantization(scale, zero_point, channels, table.number(6)) if channels else None


def _block(table: _Table | None) -> int:
    """Inputs per scale, 0 where weights are not quantised by blocks."""
    details = table.table(5) if table is not None and table.number(4, "B") == BLOCKWISE else None
    size: int = details.number(2) if details else 0
    return size


def _signature(table: _Table, subgraphs: tuple[Subgraph, ...]) -> tuple[Signature, int]:
    name = table.text(2)
    index = table.number(4, "I")
    if index >= len(subgraphs):
        _fail(f"signature {name!r} names subgraph {index} of {len(subgraphs)}")
    tensors = subgraphs[index].tensors

    def entry(pair: _Table) -> Tensor:
        (at,) = _checked((pair.number(1, "I"),), len(tensors), f"a tensor of signature {name!r}")
        return Tensor(pair.text(0), tensors[at].shape, tensors[at].dtype)

    return Signature(name, table.tables(0, entry), table.tables(1, entry)), index


def _metadata(table: _Table, buffers: tuple[Buffer, ...]) -> tuple[str, int]:
    """Its name, and the buffer that holds it."""
    (number,) = _checked((table.number(1, "I"),), len(buffers), "the buffer of a metadata entry")
    return table.text(0), number


def _ordered(flat: _FlatBuffer, held: Buffer, subgraphs: tuple[Subgraph, ...]) -> tuple[Subgraph, ...]:
    """With the edges that the metadata has, as varints: version 1, the number of subgraphs, and for each the
    number of its edges and their ends (lite/experimental/remat/metadata_util.cc)."""
    numbers = _varints(flat, held)
    version, count = next(numbers, 0), next(numbers, 0)
    if version != 1 or count != len(subgraphs):
        _fail(f"its {CONTROL_EDGES} have version {version} and {count} subgraphs of {len(subgraphs)}")
    found = []
    for subgraph in subgraphs:
        ends = [next(numbers, -1) for _ in range(2 * next(numbers, 0))]
        if any(end & 1 or end >> 1 >= len(subgraph.operators) for end in ends):  # zigzag: odd is negative
            _fail(f"its {CONTROL_EDGES} name operators that are not there")
        pairs = [end >> 1 for end in ends]
        found.append(replace(subgraph, control_edges=tuple(zip(pairs[::2], pairs[1::2], strict=True))))
    return tuple(found)


def _varints(flat: _FlatBuffer, held: Buffer) -> Iterator[int]:
    value = shift = 0
    for byte in flat.data[held.offset_bytes : held.offset_bytes + min(held.bytes, _MOST_EDGES_BYTES)]:
        value |= (byte & 127) << shift
        shift += 7
        if not byte & 128:
            yield value
            value = shift = 0
        elif shift > 63:
            _fail(f"its {CONTROL_EDGES} hold a number of more than 63 bits")


def _checked(indexes: tuple[int, ...], count: int, what: str, optional: bool = False) -> tuple[int, ...]:
    lowest = -1 if optional else 0
    if indexes and (min(indexes) < lowest or max(indexes) >= count):
        _fail(f"{what} is number {max(indexes)} of {count}")
    return indexes
