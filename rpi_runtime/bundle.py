"""A bundle on disk: reads its manifest and hands out its files, none of which is trusted unchecked.

Checked are, in this order: the manifest, that every path stays inside the folder, sizes, sha256, and the
structure of every graph against the manifest. Native code opens files only after that.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rpi_runtime import tflite_file, verified
from rpi_runtime.errors import BundleError
from rpi_runtime.manifest import (
    COMPONENTS,
    DECODER,
    KV_BYTES,
    MANIFEST_FILE,
    TABLE_BYTES,
    VISION_BASE,
    VISION_LARGE,
    VRC,
    Component,
    Embedding,
    File,
    Manifest,
    Tensor,
    from_json,
)

_MAKE = "Make a bundle with `toolkit convert CHECKPOINT -o BUNDLE`."
_AGAIN = "Convert the checkpoint again, or copy the bundle again."
_MANIFEST_MOST_BYTES = 16 << 20  # a real one has some tens of kilobytes


@dataclass(frozen=True)
class Bundle:
    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | os.PathLike[str], verify: bool = True) -> Bundle:
        """The bundle in folder `path`.

        With `verify`, sizes, hashes and graph structures are checked unless they were on this machine
        since the files last changed. Without it only the manifest is, and that its paths stay inside.
        Raises `BundleError`.
        """
        folder = Path(path)
        _need_bundle_folder(folder)
        text = _read_manifest(folder)
        try:
            bundle = cls(folder, from_json(text))
        except BundleError as error:
            raise BundleError(f"{folder}: {error.message}", error.remedy) from None
        for problem in _contradictions(bundle.manifest):
            raise BundleError(f"{folder}: {MANIFEST_FILE}: {problem}", _AGAIN)
        for entry in bundle.manifest.files():
            _need_inside(entry.path)
        if verify:
            files = [bundle.file(f) for f in bundle.manifest.files()]
            mark = verified.stamp(text.encode("utf-8", "surrogatepass"), files)
            if not verified.is_remembered(folder, mark):
                for found in bundle.problems():
                    raise found
                verified.remember(folder, mark)
        return bundle

    def path(self, component: str, delegate: str = "") -> Path:
        """The graph of `component`, with `delegate` the one for that; `BundleError` when the bundle was made
        without it."""
        found = self.manifest.component(component)
        if found is None:
            held = ", ".join(c.name for c in self.manifest.components) or "none"
            raise BundleError(
                f"{self.folder}: has no {component} (it holds: {held})",
                f"Convert again with `--components` that include {component}.",
            )
        if delegate in ("", found.delegate):
            return self.file(found.file)
        variant = next((v for v in found.variants if v.delegate == delegate), None)
        if variant is None:
            held = ", ".join(graph.delegate for graph in found.graphs)
            raise BundleError(
                f"{self.folder}: has no {component} for {delegate} (it holds: {held})",
                f"Convert again with `--delegate` that includes {component}={delegate}.",
            )
        return self.file(variant.file)

    def file(self, entry: File) -> Path:
        """Where `entry` lies; `BundleError` when its path leaves the folder or no plain file is there."""
        return _inside(self.folder, entry.path)

    def problems(self) -> Iterator[BundleError]:
        """Reads every file again and yields what is wrong with each: size, bytes, structure."""
        graphs = {g.file.path: c for c in self.manifest.components for g in c.graphs}
        for entry in self.manifest.files():
            try:
                path = self.file(entry)
                _check_bytes(path, entry)
                if entry.path in graphs:
                    _check_graph(path, graphs[entry.path])
            except BundleError as found:
                yield found
            except OSError as error:
                yield BundleError(f"{entry.path}: cannot be read: {error.strerror}", _AGAIN)


def _need_bundle_folder(folder: Path) -> None:
    if not folder.exists():
        raise BundleError(f"{folder}: no such folder", _MAKE)
    if not folder.is_dir():
        raise BundleError(f"{folder}: is a file; a bundle is a folder with a {MANIFEST_FILE}", _MAKE)
    if not (folder / MANIFEST_FILE).exists():
        if (folder / "config.json").exists():
            raise BundleError(
                f"{folder}: is a checkpoint, not a bundle",
                f"Convert it first: `toolkit convert {folder} -o BUNDLE`.",
            )
        if folder.name.endswith(".partial"):
            raise BundleError(
                f"{folder}: is the work folder of a convert that has not finished",
                "Run that `toolkit convert` again: it goes on where it stopped.",
            )
        raise BundleError(f"{folder}: is not a bundle (it has no {MANIFEST_FILE})", _MAKE)


def _read_manifest(folder: Path) -> str:
    path = _inside(folder, MANIFEST_FILE)
    try:
        if path.stat().st_size > _MANIFEST_MOST_BYTES:
            raise BundleError(f"{path}: {path.stat().st_size} bytes is too large for a manifest", _AGAIN)
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(f"{path}: is not UTF-8 text: {error}", _AGAIN) from None
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror}", _AGAIN) from None


def _need_inside(relative: str) -> None:
    """Raises `BundleError` for a path that leaves its folder by its very words."""
    parts = PurePosixPath(relative).parts
    # Backslash and colon would mean folders and drives to another system that reads the same bundle.
    if not parts or parts[0] == "/" or ".." in parts or set(relative) & set("\\:\0"):
        raise BundleError(
            f"path {relative!r} leaves the bundle", "Do not use this bundle: it was tampered with."
        )


def _inside(folder: Path, relative: str) -> Path:
    """`folder / relative`, refused when it is not a plain file inside `folder`, symbolic links followed."""
    _need_inside(relative)
    path = folder / relative
    try:
        real = path.resolve(strict=True)
        mode = real.stat().st_mode
    except FileNotFoundError:
        raise BundleError(f"{path}: is missing", _AGAIN) from None
    except (OSError, RuntimeError, ValueError) as error:
        raise BundleError(f"{path}: cannot be read: {error}", _AGAIN) from None
    if folder.resolve() not in real.parents:
        raise BundleError(
            f"{path}: is a link that leaves the bundle, to {real}",
            "Copy the bundle with its links followed (`cp -rL`), or convert again.",
        )
    if not stat.S_ISREG(mode):
        raise BundleError(f"{path}: is not a plain file", _AGAIN)
    return path


def _check_bytes(path: Path, entry: File) -> None:
    size = path.stat().st_size
    if size != entry.bytes:
        kind = "cut" if size < entry.bytes else "too long"
        raise BundleError(f"{path}: is {kind}: {size} bytes, expected {entry.bytes}", _AGAIN)
    found = sha256_of(path)
    if found != entry.sha256:
        raise BundleError(
            f"{path}: its bytes were changed (sha256 {found[:12]}..., expected {entry.sha256[:12]}...)",
            _AGAIN,
        )


def sha256_of(path: Path) -> str:
    """Hex digest, read in pieces so that the file never lies in memory as a whole."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _contradictions(manifest: Manifest) -> Iterator[str]:
    """Statements of the manifest that cannot be true together; the host sizes its arrays by them."""
    names = [c.name for c in manifest.components]
    for name in names:
        if name not in COMPONENTS:
            yield f"component {name!r} is unknown"
    if len(set(names)) != len(names):
        yield f"components repeat: {', '.join(names)}"
    for component in manifest.components:
        delegates = [graph.delegate for graph in component.graphs]
        if len(set(delegates)) != len(delegates):
            yield f"{component.name} has two graphs for one delegate: {', '.join(delegates)}"
    paths = [f.path for f in manifest.files()]
    if len(set(paths)) != len(paths):
        yield f"two entries share one file: {', '.join(sorted(p for p in paths if paths.count(p) > 1))}"
    yield from _decoder_contradictions(manifest)
    yield from _vision_contradictions(manifest)


def _decoder_contradictions(manifest: Manifest) -> Iterator[str]:
    graph, spec, table = manifest.component(DECODER), manifest.decoder, manifest.embedding
    if not (bool(graph) == bool(spec) == bool(table)):
        yield "decoder graph, decoder numbers and embedding belong together, and one of them is absent"
        return
    if graph is None or spec is None or table is None:
        return
    yield from _not_positive(
        "decoder",
        spec.layers,
        spec.kv_heads,
        spec.head_dim,
        spec.hidden_size,
        spec.vocab_size,
        *spec.contexts,
        spec.rope_theta,
        *spec.prefill_tokens,
    )
    if spec.kv_dtype not in KV_BYTES:
        yield f"decoder.kv_dtype is {spec.kv_dtype!r}, not one of {', '.join(KV_BYTES)}"
    if list(spec.prefill_tokens) != sorted(set(spec.prefill_tokens)):
        yield f"decoder.prefill_tokens {list(spec.prefill_tokens)} is not ascending"
    if not spec.contexts or list(spec.contexts) != sorted(set(spec.contexts)):
        yield f"decoder.contexts {list(spec.contexts)} is not an ascending list"
        return
    yield from _absent(graph, spec.signatures(spec.contexts, spec.prefill_tokens))
    shape = f"{table.rows} x {table.columns}"
    if (table.rows, table.columns) != (spec.vocab_size, spec.hidden_size):
        yield f"embedding is {shape}, the decoder {spec.vocab_size} x {spec.hidden_size}"
    yield from _table_contradictions(table, graph.file)


def _table_contradictions(table: Embedding, graph: File) -> Iterator[str]:
    what = f"embedding of {table.rows} x {table.columns} {table.dtype}"
    if table.dtype not in TABLE_BYTES:
        yield f"embedding.dtype is {table.dtype!r}, not one of {', '.join(TABLE_BYTES)}"
        return
    end = table.offset + table.bytes
    last = table.file.bytes if table.file == graph else table.bytes
    if table.offset < 0 or not end <= table.file.bytes <= last + table.offset:
        yield f"{what} from byte {table.offset} cannot lie in the {table.file.bytes} of {table.file.path}"
    if (table.dtype == "int8") != (table.scales is not None):
        yield f"{what} {'has scales' if table.scales else 'has no scales'}"
    if table.scales and table.scales.bytes != 4 * (table.rows + table.columns):
        yield f"{what} cannot have scales of {table.scales.bytes} bytes"


def _vision_contradictions(manifest: Manifest) -> Iterator[str]:
    spec = manifest.vision
    graphs = [c for c in manifest.components if c.name != DECODER]
    if bool(graphs) != bool(spec):
        yield "vision graphs and vision numbers belong together, and one of them is absent"
    if spec is None:
        return
    yield from _not_positive(
        "vision", spec.tile_side, spec.max_tiles, spec.patch_px, spec.vrc_side, *spec.tile_sides, *spec.scales
    )
    if not spec.tile_sides or list(spec.tile_sides) != sorted(set(spec.tile_sides), reverse=True):
        yield f"vision.tile_sides {list(spec.tile_sides)} is not a descending list"
    for graph in graphs:
        if graph.name in (VISION_BASE, VISION_LARGE):
            yield from _absent(graph, [f"tile_{side}" for side in spec.tile_sides])
        elif graph.name == VRC:
            yield from _absent(graph, ["route"])


def _not_positive(what: str, *numbers: float) -> Iterator[str]:
    for number in numbers:
        if not number > 0:
            yield f"{what} has {number} where only more than 0 makes sense"


def _absent(graph: Component, needed: Iterable[str]) -> Iterator[str]:
    held = {s.name for s in graph.signatures}
    for name in needed:
        if name not in held:
            yield f"{graph.name} has no signature {name!r}"


def _check_graph(path: Path, component: Component) -> None:
    """The file's own signatures must be those that the manifest promises, tensor by tensor."""
    held = {s.name: s for s in tflite_file.read(path).signatures}
    promised = {s.name: s for s in component.signatures}
    if set(held) != set(promised):
        raise BundleError(
            f"{path}: has signatures {sorted(held)}, the manifest names {sorted(promised)}", _AGAIN
        )
    for name, signature in promised.items():
        for side in ("inputs", "outputs"):
            found = {t.name: t for t in getattr(held[name], side)}
            expected = {t.name: t for t in getattr(signature, side)}
            different = sorted(n for n in {*found, *expected} if found.get(n) != expected.get(n))
            if different:
                one = different[0]
                raise BundleError(
                    f"{path}: {side[:-1]} {one!r} of signature {name!r} is {_tensor(found.get(one))}, "
                    f"the manifest says {_tensor(expected.get(one))}",
                    _AGAIN,
                )


def _tensor(tensor: Tensor | None) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}" if tensor else "absent"
