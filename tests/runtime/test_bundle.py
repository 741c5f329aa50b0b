"""A bundle is opened only when every byte of it is what convert wrote."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rpi_runtime import bundle as bundle_module
from rpi_runtime import verified
from rpi_runtime.bundle import Bundle
from rpi_runtime.errors import BundleError, ExitCode
from rpi_runtime.manifest import COMPONENTS, MANIFEST_FILE, SCHEMA_VERSION, File, Manifest, Tensor, to_json
from tests.runtime import tiny_bundle

FILES = (
    "manifest.json",
    "vrc.tflite",
    "vision_base.tflite",
    "vision_large.tflite",
    "decoder.tflite",
    *(f"{name}.sample.npz" for name in COMPONENTS),
    "embedding.int8",
    "embedding.scales",
    "tokenizer.json",
    "chat_template.jinja",
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_bundle.write(tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose bytes were read, in order."""
    names: list[str] = []
    real = bundle_module.sha256_of

    def note(path: Path) -> str:
        names.append(path.name)
        return real(path)

    monkeypatch.setattr(bundle_module, "sha256_of", note)
    return names


def refusal(folder: Path) -> BundleError:
    with pytest.raises(BundleError) as caught:
        Bundle.open(folder)
    assert caught.value.remedy
    assert caught.value.exit_code == ExitCode.COULD_NOT_CHECK
    return caught.value


def rewrite(folder: Path, change: Callable[[Manifest], Manifest]) -> None:
    """Replaces the manifest by a well-formed one that says something else."""
    manifest = Bundle.open(folder, verify=False).manifest
    (folder / MANIFEST_FILE).write_text(to_json(change(manifest)))


def with_tokenizer(path: str) -> Callable[[Manifest], Manifest]:
    def change(manifest: Manifest) -> Manifest:
        file = dataclasses.replace(manifest.text.tokenizer, path=path)
        return dataclasses.replace(manifest, text=dataclasses.replace(manifest.text, tokenizer=file))

    return change


def test_a_whole_bundle_opens_and_names_its_files(folder: Path) -> None:
    bundle = Bundle.open(folder)
    assert bundle.path("decoder") == folder / "decoder.tflite"
    assert bundle.file(bundle.manifest.text.tokenizer).read_text().startswith("{")
    assert sorted(f.path for f in bundle.manifest.files()) == sorted(set(FILES) - {MANIFEST_FILE})


def test_a_component_that_is_not_there_is_named_beside_those_that_are(folder: Path) -> None:
    bundle = Bundle.open(folder)
    text_only = dataclasses.replace(bundle.manifest, components=bundle.manifest.components[-1:])
    with pytest.raises(BundleError, match=r"has no vrc \(it holds: decoder\)"):
        Bundle(folder, text_only).path("vrc")


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_changed_byte_in_any_file_is_found(folder: Path, name: str, data: st.DataObject) -> None:
    path = folder / name
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda v: v != whole[at]))
    try:
        path.write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
        assert name in refusal(folder).message
    finally:
        path.write_bytes(whole)
    Bundle.open(folder)


def test_a_changed_file_is_named_with_both_hashes(folder: Path) -> None:
    expected = tiny_bundle.entry(folder, "vision_base.tflite").sha256
    path = folder / "vision_base.tflite"
    path.write_bytes(path.read_bytes().replace(b"weights!", b"weights?"))
    found = tiny_bundle.entry(folder, "vision_base.tflite").sha256
    message = refusal(folder).message
    assert "vision_base.tflite: its bytes were changed" in message
    assert f"sha256 {found[:12]}..., expected {expected[:12]}..." in message


def test_a_cut_and_a_grown_file_are_told_apart_with_their_sizes(folder: Path) -> None:
    path = folder / "embedding.int8"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert f"is cut: {len(whole) - 1} bytes, expected {len(whole)}" in refusal(folder).message
    path.write_bytes(whole + b"x")
    assert f"is too long: {len(whole) + 1} bytes" in refusal(folder).message


@pytest.mark.parametrize("name", FILES[1:])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert refusal(folder).message.endswith(f"{name}: is missing")


def test_what_is_no_bundle_says_what_it_is(tmp_path: Path, folder: Path) -> None:
    assert "no such folder" in refusal(tmp_path / "nothing").message
    assert "is a file; a bundle is a folder" in refusal(folder / "decoder.tflite").message
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "is not a bundle (it has no manifest.json)" in refusal(empty).message
    (empty / "config.json").write_text("{}")
    error = refusal(empty)
    assert "is a checkpoint, not a bundle" in error.message
    assert f"toolkit convert {empty} -o" in error.remedy
    partial = tmp_path / "b.partial"
    partial.mkdir()
    assert "convert that has not finished" in refusal(partial).message


def test_an_older_schema_asks_for_another_convert(folder: Path) -> None:
    data = json.loads((folder / MANIFEST_FILE).read_text())
    data["schema_version"] = SCHEMA_VERSION - 1
    (folder / MANIFEST_FILE).write_text(json.dumps(data))
    error = refusal(folder)
    assert f"has schema {SCHEMA_VERSION - 1}, of an older toolkit; this one reads" in error.message
    assert "Convert" in error.remedy


def test_a_newer_schema_asks_for_a_newer_toolkit(folder: Path) -> None:
    data = json.loads((folder / MANIFEST_FILE).read_text())
    data["schema_version"] = SCHEMA_VERSION + 1
    data["something_of_tomorrow"] = True
    (folder / MANIFEST_FILE).write_text(json.dumps(data))
    error = refusal(folder)
    assert f"has schema {SCHEMA_VERSION + 1}; this toolkit reads up to {SCHEMA_VERSION}" in error.message
    assert "Update hypervl-edge" in error.remedy


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "[" * 100_000, '{"schema_version": 1}', '{"schema_version": true}', "\x00"],
)
def test_a_manifest_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / MANIFEST_FILE).write_text(text)
    assert MANIFEST_FILE in refusal(folder).message


def test_a_manifest_that_is_not_text_or_has_no_end_is_refused(folder: Path) -> None:
    (folder / MANIFEST_FILE).write_bytes(b"\xff\xfe")
    assert "is not UTF-8" in refusal(folder).message
    with (folder / MANIFEST_FILE).open("r+b") as file:
        file.truncate(1 << 30)
    assert "too large for a manifest" in refusal(folder).message


@pytest.mark.parametrize(
    "path",
    ["../secret", "/etc/passwd", "a/../../secret", "", ".", "C:\\secret", "..\\secret", "a\0b", "\ud800"],
)
def test_a_path_that_leaves_the_bundle_is_refused(folder: Path, path: str) -> None:
    (folder.parent / "secret").write_text("{}")
    (folder / "a").mkdir()
    text = to_json(with_tokenizer(path)(Bundle.open(folder, verify=False).manifest))
    (folder / MANIFEST_FILE).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(BundleError):
        Bundle.open(folder, verify=False)
    refusal(folder)


def test_a_link_may_stay_inside_but_not_leave(folder: Path) -> None:
    tokenizer = folder / "tokenizer.json"
    tokenizer.rename(folder / "blob")
    tokenizer.symlink_to("blob")
    Bundle.open(folder)
    outside = folder.parent / "blob"
    (folder / "blob").rename(outside)
    tokenizer.unlink()
    tokenizer.symlink_to(outside)
    message = refusal(folder).message
    assert f"is a link that leaves the bundle, to {outside}" in message
    tokenizer.unlink()
    tokenizer.symlink_to("tokenizer.json")
    refusal(folder)


def test_a_link_to_a_whole_bundle_opens(folder: Path) -> None:
    link = folder.parent / "current"
    link.symlink_to(folder)
    assert Bundle.open(link).path("vrc") == link / "vrc.tflite"


def test_what_is_no_plain_file_is_never_opened(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")
    assert "is not a plain file" in refusal(folder).message


def _replace(part: str, **values: Any) -> Callable[[Manifest], Manifest]:
    return lambda m: dataclasses.replace(m, **{part: dataclasses.replace(getattr(m, part), **values)})


def _table_in_decoder(offset: int) -> Callable[[Manifest], Manifest]:
    def change(manifest: Manifest) -> Manifest:
        graph = manifest.component("decoder")
        assert graph is not None
        return _replace("embedding", file=graph.file, offset=offset)(manifest)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: dataclasses.replace(m, components=m.components * 2), "components repeat"),
        (lambda m: dataclasses.replace(m, embedding=None), "belong together"),
        (lambda m: dataclasses.replace(m, vision=None), "belong together"),
        (with_tokenizer("decoder.tflite"), "two entries share one file: decoder.tflite"),
        (_replace("decoder", prefill_tokens=(4, 8)), "decoder has no signature 'prefill_8'"),
        (_replace("decoder", prefill_tokens=(8, 4)), "is not ascending"),
        (_replace("decoder", layers=0), "decoder has 0"),
        (_replace("decoder", vocab_size=13), "embedding is 12 x 8, the decoder 13 x 8"),
        (_replace("decoder", rope_theta=float("nan")), "decoder has nan"),
        (_replace("embedding", dtype="int4"), "embedding.dtype is 'int4', not one of float32, float16, int8"),
        (_replace("embedding", dtype="float16"), "cannot lie in the 96 of embedding.int8"),
        (_replace("embedding", offset=1), "from byte 1 cannot lie in the 96 of embedding.int8"),
        (_replace("embedding", offset=-1), "from byte -1 cannot lie"),
        (_table_in_decoder(10**6), "from byte 1000000 cannot lie in the"),
        (_replace("embedding", scales=None), "has no scales"),
        (_replace("embedding", scales=File("embedding.scales", "0", 79)), "cannot have scales of 79 bytes"),
        (_replace("vision", tile_sides=(64, 48)), "vision_base has no signature 'tile_48'"),
        (_replace("vision", tile_sides=()), "not a descending list"),
        (_replace("vision", patch_px=0), "vision has 0"),
    ],
)
def test_statements_that_cannot_be_true_together_are_refused(
    folder: Path, change: Callable[[Manifest], Manifest], words: str
) -> None:
    rewrite(folder, change)
    assert words in refusal(folder).message


def test_a_graph_must_have_the_tensors_that_the_manifest_promises(folder: Path) -> None:
    def promise(**values: Any) -> Callable[[Manifest], Manifest]:
        def change(manifest: Manifest) -> Manifest:
            *others, decoder = manifest.components
            first = dataclasses.replace(decoder.signatures[0], **values)
            changed = dataclasses.replace(decoder, signatures=(first, *decoder.signatures[1:]))
            return dataclasses.replace(manifest, components=(*others, changed))

        return change

    manifest = Bundle.open(folder).manifest
    inputs = manifest.components[-1].signatures[0].inputs
    rewrite(folder, promise(inputs=(dataclasses.replace(inputs[0], shape=(1, 4, 9)), *inputs[1:])))
    found, promised = "is float32 [1, 4, 8]", "the manifest says float32 [1, 4, 9]"
    assert f"input 'embeddings' of signature 'prefill_4' {found}, {promised}" in refusal(folder).message
    rewrite(folder, promise(inputs=(*inputs, Tensor("mask", (1, 1, 4, 20), "float32"))))
    assert "input 'mask' of signature 'prefill_4' is absent" in refusal(folder).message


def test_a_graph_whose_structure_is_broken_is_refused_even_if_its_hash_fits(folder: Path) -> None:
    path = folder / "vrc.tflite"
    path.write_bytes(path.read_bytes()[:60])

    def hash_again(manifest: Manifest) -> Manifest:
        vrc = dataclasses.replace(manifest.components[0], file=tiny_bundle.entry(folder, "vrc.tflite"))
        return dataclasses.replace(manifest, components=(vrc, *manifest.components[1:]))

    text = json.loads((folder / MANIFEST_FILE).read_text())
    assert text["components"][0]["name"] == "vrc"
    manifest = bundle_module.from_json((folder / MANIFEST_FILE).read_text())
    (folder / MANIFEST_FILE).write_text(to_json(hash_again(manifest)))
    assert "vrc.tflite is damaged" in refusal(folder).message


def test_bytes_are_read_once_and_remembered_outside_the_bundle(
    folder: Path, cache: Path, hashed: list[str]
) -> None:
    before = sorted(p.name for p in folder.iterdir())
    Bundle.open(folder)
    assert sorted(hashed) == sorted(set(FILES) - {MANIFEST_FILE})
    hashed.clear()
    Bundle.open(folder)
    assert hashed == []
    assert sorted(p.name for p in folder.iterdir()) == before
    assert [p.relative_to(cache).as_posix() for p in cache.rglob("*") if p.is_file()] == [
        "hypervl-edge/verified.json"
    ]


def test_a_file_that_changed_since_is_read_again_even_with_its_old_time(
    folder: Path, hashed: list[str]
) -> None:
    Bundle.open(folder)
    path = folder / "decoder.tflite"
    times = path.stat()
    changed = path.read_bytes().replace(b"weights!", b"weights?")
    path.write_bytes(changed)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_mtime_ns == times.st_mtime_ns
    hashed.clear()
    assert "decoder.tflite" in refusal(folder).message
    assert "decoder.tflite" in hashed


def test_a_refused_bundle_is_not_remembered(folder: Path, hashed: list[str]) -> None:
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0, "b": 2}}}')
    refusal(folder)
    refusal(folder)
    assert len(hashed) > len(FILES)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1}', "\x00" * 50])
def test_a_damaged_memory_is_forgotten(folder: Path, cache: Path, hashed: list[str], content: str) -> None:
    state = cache / "hypervl-edge" / "verified.json"
    state.parent.mkdir(parents=True)
    state.write_text(content)
    Bundle.open(folder)
    hashed.clear()
    Bundle.open(folder)
    assert hashed == []


def test_without_a_place_to_remember_it_still_opens(folder: Path, cache: Path, hashed: list[str]) -> None:
    cache.write_text("a file where the folder should be")
    Bundle.open(folder)
    Bundle.open(folder)
    assert len(hashed) == 2 * (len(FILES) - 1)


def test_the_memory_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verified, "MOST_BUNDLES", 3)
    for n in range(5):
        verified.remember(folder / str(n), "x")
    state = verified.state_file()
    assert state is not None
    assert [Path(p).name for p in json.loads(state.read_text())] == ["2", "3", "4"]


def test_unverified_opening_reads_only_the_manifest(folder: Path, hashed: list[str]) -> None:
    (folder / "decoder.tflite").write_bytes(b"short")
    bundle = Bundle.open(folder, verify=False)
    assert hashed == []
    decoder = bundle.manifest.component("decoder")
    assert decoder is not None
    (problem,) = bundle.problems()
    assert problem.message.endswith(f"decoder.tflite: is cut: 5 bytes, expected {decoder.file.bytes}")


def test_all_problems_are_found_not_only_the_first(folder: Path) -> None:
    (folder / "decoder.tflite").write_bytes(b"short")
    (folder / "chat_template.jinja").write_text("{{ messages[1].content }}")
    found = [p.message.partition(":")[0] for p in Bundle.open(folder, verify=False).problems()]
    assert sorted(Path(f).name for f in found) == ["chat_template.jinja", "decoder.tflite"]
