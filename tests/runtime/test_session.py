"""A bundle answers as the PyTorch reference does, and what was computed once is not computed again."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hypervl.generate import Reference, generate
from hypervl.model import HyperVL
from rpi_runtime.backends.base import Graph
from rpi_runtime.errors import BundleError, UsageError
from rpi_runtime.generation import Generation, Progress
from rpi_runtime.graphs import ONE_BY_ONE, TOGETHER, Residency
from rpi_runtime.images import Source
from rpi_runtime.kernel import give_back, memory
from rpi_runtime.manifest import DECODER, MANIFEST_FILE, Manifest, from_json, to_json
from rpi_runtime.prompt import IMAGE, Message
from rpi_runtime.sampling import Sampling
from rpi_runtime.session import Session
from rpi_runtime.tokenizer import TextCodec

QUESTION = "What is this?"
SIDES = (192, 64)
Ask = Callable[..., Reference]


@pytest.fixture(scope="module")
def reference(routing_model: HyperVL, routing_checkpoint: Path) -> Ask:
    codec = TextCodec.from_checkpoint(routing_checkpoint)

    def ask(images: Sequence[Source], prompt: str | Sequence[Message], **options: Any) -> Reference:
        return generate(routing_model, codec, images, prompt, tile_sides=SIDES, **options)

    return ask


def finished(generation: Generation) -> list[int]:
    """Its token ids, after all pieces were asked for."""
    assert "".join(generation) == generation.text
    return generation.token_ids


def rewritten(bundle: Path, folder: Path, change: Callable[[Manifest], Manifest]) -> Path:
    """A copy of the bundle with another manifest."""
    copy = folder / "bundle"
    shutil.copytree(bundle, copy)
    manifest = change(from_json((copy / MANIFEST_FILE).read_text()))
    (copy / MANIFEST_FILE).write_text(to_json(manifest))
    return copy


class TestTheAnswerIsTheReferences:
    @pytest.mark.parametrize("routing", ["tile", "image", "fixed:1", "fixed:0.25"])
    def test_for_a_photo_whoever_routes_it(
        self, session: Session, reference: Ask, photo: Path, routing: str
    ) -> None:
        expected = reference([photo], QUESTION, routing=routing, max_new_tokens=24)
        answer = session.generate(QUESTION, [photo], routing=routing, max_new_tokens=24)
        assert tuple(finished(answer)) == expected.token_ids
        assert answer.text == expected.text
        assert tuple(picture.plan for picture in answer.pictures) == expected.plans
        assert answer.report.prompt_tokens == expected.prompt.tokens
        assert answer.report.visual_tokens == expected.prompt.visual_tokens

    def test_tiles_of_the_photo_are_routed_to_different_sides(self, reference: Ask, photo: Path) -> None:
        assert set(reference([photo], QUESTION, max_new_tokens=1).plans[0].sides) == set(SIDES)

    @pytest.mark.parametrize("branch", ["large", "auto"])
    def test_for_either_branch(self, session: Session, reference: Ask, photo: Path, branch: str) -> None:
        expected = reference([photo], QUESTION, branch=branch, max_new_tokens=24)
        answer = session.generate(QUESTION, [photo], branch=branch, max_new_tokens=24)
        assert tuple(finished(answer)) == expected.token_ids
        assert answer.report.branch == expected.plans[0].branch

    @pytest.mark.parametrize("backend", ["compiled", "interpreter"])
    def test_on_every_backend_with_two_pictures_in_their_places(
        self, nano_bundle: Path, cache_home: Path, reference: Ask, photo: Path, wide_photo: Path, backend: str
    ) -> None:
        prompt = ("First ", IMAGE, " then ", IMAGE, " differ how?")
        expected = reference(
            [photo, wide_photo], [Message("user", prompt)], routing="fixed:0.25", max_new_tokens=24
        )
        with Session.open(nano_bundle, backend=backend, threads=1) as session:
            answer = session.generate(prompt, [photo, wide_photo], routing="fixed:0.25", max_new_tokens=24)
            assert tuple(finished(answer)) == expected.token_ids
            assert answer.report.backend.name == backend
            assert answer.report.threads == 1

    def test_without_a_picture_and_with_a_system_message(self, session: Session, reference: Ask) -> None:
        messages = [Message("system", "Be brief."), Message("user", QUESTION)]
        expected = reference([], messages, max_new_tokens=24)
        answer = session.generate(QUESTION, system="Be brief.", max_new_tokens=24)
        assert tuple(finished(answer)) == expected.token_ids

    def test_a_raw_prompt_goes_without_the_template(self, session: Session) -> None:
        raw = session.generate("Hello", raw=True, max_new_tokens=4)
        finished(raw)
        assert raw.report.prompt_tokens == len(session.codec.encode("Hello"))
        with pytest.raises(UsageError, match="raw"):
            session.generate("Hello", raw=True, system="Be brief.")
        with pytest.raises(UsageError, match="empty"):
            session.generate("", raw=True)


class TestWhatEndsAnAnswer:
    def test_the_limit(self, session: Session) -> None:
        answer = session.generate(QUESTION, max_new_tokens=5)
        assert len(finished(answer)) == 5
        assert (answer.stop_reason, answer.report.stop_reason) == ("length", "length")

    def test_a_stop_string_which_is_not_shown(self, session: Session) -> None:
        whole = session.generate(QUESTION, max_new_tokens=20)
        finished(whole)
        stop = whole.text[6:8]
        answer = session.generate(QUESTION, max_new_tokens=20, stop=[stop])
        finished(answer)
        assert answer.text == whole.text[: whole.text.index(stop)]
        assert answer.stop_reason == "stop"

    def test_the_models_own_end(self, nano_bundle: Path, cache_home: Path, tmp_path: Path) -> None:
        with Session.open(nano_bundle, threads=1) as session:
            ids = finished(session.generate(QUESTION, max_new_tokens=12))
        end = ids[-1]
        bundle = rewritten(
            nano_bundle,
            tmp_path,
            lambda m: dataclasses.replace(m, text=dataclasses.replace(m.text, eos_token_ids=(end,))),
        )
        with Session.open(bundle, threads=1) as session:
            answer = session.generate(QUESTION, max_new_tokens=12)
            assert finished(answer) == ids[: ids.index(end)]
            assert answer.stop_reason == "ended"

    def test_a_full_context(self, session: Session) -> None:
        prompt = "x" * 450
        answer = session.generate(prompt, max_new_tokens=200)
        made = len(finished(answer))
        assert answer.stop_reason == "context"
        # The last token is never fed, so it needs no slot.
        assert answer.report.prompt_tokens + made == answer.report.context_tokens + 1

    def test_the_same_seed_draws_the_same_answer(self, session: Session) -> None:
        drawn = [
            finished(session.generate(QUESTION, sampling=Sampling(1.5, seed=seed), max_new_tokens=12))
            for seed in (1, 1, 2)
        ]
        assert drawn[0] == drawn[1] != drawn[2]


class TestReport:
    def test_it_counts_tiles_tokens_times_and_memory(
        self, session: Session, reference: Ask, photo: Path
    ) -> None:
        plan = reference([photo], QUESTION, max_new_tokens=1).plans[0]
        answer = session.generate(QUESTION, [photo], max_new_tokens=9)
        finished(answer)
        report = answer.report
        (image,) = report.images
        assert (image.width_px, image.height_px) == (512, 512)
        assert (image.columns, image.rows, image.thumbnail) == (plan.columns, plan.rows, plan.thumbnail)
        assert image.sides_px == plan.sides
        assert image.tokens == tuple((side // 32) ** 2 for side in plan.sides)
        assert image.encoded_tiles == image.tiles == 10
        assert report.visual_tokens == sum(image.tokens)
        assert report.visual_tokens_unrouted == 10 * 36
        assert report.new_tokens == 9
        assert report.reused_tokens == 0
        times = dataclasses.asdict(report.times)
        assert all(value > 0 for value in times.values())
        total, first = times.pop("total_ms"), times.pop("first_token_ms")
        assert sum(times.values()) <= total
        assert first <= total
        assert report.decode_tokens_per_s > 0
        assert report.prefill_tokens_per_s > 0
        assert report.memory.peak_resident_bytes >= report.memory.anonymous_bytes > 0
        assert report.routing == "tile"
        assert report.model == "hypervl-nano"
        assert report.weight_cache == {"vrc": "built", "decoder": "built", "vision_base": "built"}

    def test_there_is_none_before_the_end_nor_after_an_error(self, session: Session, tmp_path: Path) -> None:
        answer = session.generate(QUESTION, max_new_tokens=3)
        next(answer)
        with pytest.raises(RuntimeError):
            _ = answer.report
        failed = session.generate(QUESTION, [tmp_path / "absent.png"])
        with pytest.raises(Exception, match=r"absent\.png"):
            next(failed)
        with pytest.raises(RuntimeError):
            _ = failed.report

    def test_progress_tells_of_every_tile(self, session: Session, photo: Path) -> None:
        told: list[Progress] = []
        answer = session.generate(QUESTION, [photo], max_new_tokens=2, on_progress=told.append)
        finished(answer)
        for phase in ("route", "encode"):
            steps = [(p.done, p.total, p.image) for p in told if p.phase == phase]
            assert steps == [(i + 1, 10, 0) for i in range(10)]
        assert [p for p in told if p.phase == "prefill"][-1].done == answer.report.prompt_tokens


class TestReuse:
    def test_another_question_about_the_same_picture_encodes_nothing(
        self, session: Session, reference: Ask, photo: Path
    ) -> None:
        finished(session.generate("What is this?", [photo], max_new_tokens=6))
        expected = reference([photo], "What colour is it?", max_new_tokens=12)
        answer = session.generate("What colour is it?", [photo], max_new_tokens=12)
        assert tuple(finished(answer)) == expected.token_ids
        assert answer.report.images[0].encoded_tiles == 0
        assert answer.report.visual_tokens < answer.report.reused_tokens < answer.report.prompt_tokens
        assert answer.report.times.encode_ms == 0

    def test_another_scale_or_branch_of_it_is_encoded_anew(
        self, session: Session, reference: Ask, photo: Path
    ) -> None:
        finished(session.generate(QUESTION, [photo], routing="fixed:1", max_new_tokens=2))
        for options in ({"routing": "fixed:0.25"}, {"routing": "fixed:0.25", "branch": "large"}):
            expected = reference([photo], QUESTION, max_new_tokens=8, **options)
            answer = session.generate(QUESTION, [photo], max_new_tokens=8, **options)
            assert tuple(finished(answer)) == expected.token_ids
            assert answer.report.images[0].encoded_tiles == 10

    def test_a_second_turn_feeds_only_what_is_new(
        self, session: Session, reference: Ask, photo: Path
    ) -> None:
        talk = session.conversation(max_new_tokens=8)
        first = talk.ask(QUESTION, [photo])
        finished(first)
        second = talk.ask("And what else?")
        ids = finished(second)
        messages = [*talk.messages[:2], Message("user", "And what else?")]
        expected = reference([photo], messages, max_new_tokens=8)
        assert tuple(ids) == expected.token_ids
        assert second.report.reused_tokens >= first.report.prompt_tokens
        assert second.report.images[0].encoded_tiles == 0
        assert len(talk.messages) == 4

    def test_a_picture_in_a_later_turn_leaves_the_earlier_one_alone(
        self, session: Session, reference: Ask, photo: Path, wide_photo: Path
    ) -> None:
        talk = session.conversation(max_new_tokens=6, routing="fixed:0.25")
        finished(talk.ask(QUESTION, [photo]))
        second = talk.ask("And this?", [wide_photo])
        ids = finished(second)
        expected = reference(
            [photo, wide_photo],
            [*talk.messages[:2], Message("user", "And this?", 1)],
            routing="fixed:0.25",
            max_new_tokens=6,
        )
        assert tuple(ids) == expected.token_ids
        assert [image.encoded_tiles for image in second.report.images] == [0, 7]

    def test_a_picture_whose_keys_were_lost_is_encoded_again_as_it_was_routed(
        self, session: Session, reference: Ask, photo: Path
    ) -> None:
        talk = session.conversation(max_new_tokens=6)
        finished(talk.ask(QUESTION, [photo]))
        finished(session.generate("Something else entirely.", system="Be brief.", max_new_tokens=2))
        second = talk.ask("And what else?")
        ids = finished(second)
        expected = reference(
            [photo], [*talk.messages[:2], Message("user", "And what else?")], max_new_tokens=6
        )
        assert tuple(ids) == expected.token_ids
        assert second.report.images[0].encoded_tiles == 10
        assert second.report.times.route_ms == 0

    def test_a_picture_that_changed_meanwhile_is_not_passed_off_as_the_old_one(
        self, session: Session, photo: Path, wide_photo: Path, tmp_path: Path
    ) -> None:
        copy = tmp_path / "copy.png"
        shutil.copy(photo, copy)
        talk = session.conversation(max_new_tokens=3, routing="fixed:0.25")
        finished(talk.ask(QUESTION, [copy]))
        finished(session.generate("Something else.", system="Be brief.", max_new_tokens=2))
        shutil.copy(wide_photo, copy)
        with pytest.raises(UsageError, match="has changed"):
            next(talk.ask("And what else?"))
        assert len(talk.messages) == 2


class TestInterruption:
    """Whatever interrupts an answer, the next one is right."""

    @pytest.fixture(autouse=True)
    def _next_is_right(self, session: Session, reference: Ask, photo: Path) -> Iterator[None]:
        yield
        expected = reference([photo], "What colour is it?", max_new_tokens=10)
        answer = session.generate("What colour is it?", [photo], max_new_tokens=10)
        assert tuple(finished(answer)) == expected.token_ids

    @pytest.mark.parametrize("phase", ["route", "encode", "prefill"])
    def test_cancelling_while_the_prompt_is_read(self, session: Session, photo: Path, phase: str) -> None:
        def stop(progress: Progress) -> None:
            if progress.phase == phase:
                answer.cancel()

        answer = session.generate(QUESTION, [photo], on_progress=stop)
        assert finished(answer) == []
        assert answer.report.stop_reason == "cancelled"
        assert answer.report.new_tokens == 0

    def test_cancelling_from_another_thread_in_the_middle_of_the_text(
        self, session: Session, photo: Path
    ) -> None:
        answer = session.generate(QUESTION, [photo], max_new_tokens=200)
        next(answer)
        other = threading.Thread(target=answer.cancel)
        other.start()
        other.join()
        made = len(answer.token_ids)
        list(answer)
        assert len(answer.token_ids) <= made + 1
        assert answer.stop_reason == "cancelled"

    def test_leaving_the_iterator_behind(self, session: Session, photo: Path) -> None:
        answer = session.generate(QUESTION, [photo], max_new_tokens=50)
        next(answer)
        finished(session.generate("Another question.", max_new_tokens=2))
        assert answer.report.stop_reason == "cancelled"
        assert list(answer) == []

    @pytest.mark.parametrize("phase", ["route", "encode", "prefill"])
    def test_an_error_in_the_callers_own_callback(self, session: Session, photo: Path, phase: str) -> None:
        def fail(progress: Progress) -> None:
            if progress.phase == phase:
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            list(session.generate(QUESTION, [photo], on_progress=fail))

    def test_ctrl_c_in_the_middle_of_the_text(
        self, session: Session, photo: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answer = session.generate(QUESTION, [photo], max_new_tokens=50)
        next(answer)

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(session.decoder, "step", interrupt)
            with pytest.raises(KeyboardInterrupt):
                list(answer)
        assert answer.report.stop_reason == "cancelled"

    def test_logits_that_are_no_numbers(self, session: Session, photo: Path) -> None:
        """A NaN in the cache would poison every later answer, masked or not."""
        answer = session.generate(QUESTION, [photo], max_new_tokens=50)
        next(answer)
        rows = session.embedding.rows
        session.embedding.rows = lambda ids: rows(ids) * np.float32("nan")  # type: ignore[method-assign]
        with pytest.raises(BundleError, match="no numbers"):
            list(answer)
        session.embedding.rows = rows  # type: ignore[method-assign]

    def test_a_cancelled_answer_stays_in_its_conversation_as_far_as_it_came(
        self, session: Session, reference: Ask
    ) -> None:
        talk = session.conversation(max_new_tokens=40)
        first = talk.ask(QUESTION)
        for _ in range(3):
            next(first)
        second = talk.ask("And what else?")  # which ends the first
        ids = finished(second)
        assert first.stop_reason == "cancelled"
        assert [m.role for m in talk.messages] == ["user", "assistant"] * 2
        expected = reference([], [*talk.messages[:2], Message("user", "And what else?")], max_new_tokens=40)
        assert tuple(ids) == expected.token_ids

    def test_a_turn_that_failed_is_forgotten(self, session: Session, tmp_path: Path) -> None:
        talk = session.conversation(max_new_tokens=3)
        with pytest.raises(Exception, match=r"absent\.png"):
            list(talk.ask(QUESTION, [tmp_path / "absent.png"]))
        assert talk.messages == ()
        finished(talk.ask(QUESTION))
        assert len(talk.messages) == 2


class TestRefusals:
    def test_a_prompt_longer_than_the_context_before_anything_is_encoded(
        self, session: Session, photo: Path
    ) -> None:
        told: list[Progress] = []
        answer = session.generate("x" * 400, [photo], routing="fixed:1", on_progress=told.append)
        with pytest.raises(UsageError) as caught:
            next(answer)
        words = caught.value.message.split()
        total, visual, text = (
            int(words[words.index(w) - 1].strip("(,")) for w in ("tokens", "visual,", "text),")
        )
        assert visual == 360
        assert text > 400
        assert total == visual + text
        assert "holds 512" in caught.value.message
        for way_out in ("fixed:0.5", "--context", "fewer tiles"):
            assert way_out in caught.value.remedy
        assert {p.phase for p in told} <= {"route"}
        finished(session.generate(QUESTION, max_new_tokens=2))

    def test_a_text_that_is_too_long_names_other_ways_out(self, session: Session) -> None:
        with pytest.raises(UsageError) as caught:
            next(session.generate("x" * 600))
        assert "(0 visual, " in caught.value.message
        assert "Shorten" in caught.value.remedy

    def test_a_picture_for_a_text_only_bundle(
        self, nano_bundle: Path, cache_home: Path, tmp_path: Path, photo: Path
    ) -> None:
        bundle = rewritten(
            nano_bundle,
            tmp_path,
            lambda m: dataclasses.replace(
                m, components=tuple(c for c in m.components if c.name == DECODER), vision=None
            ),
        )
        with Session.open(bundle, threads=1) as session:
            with pytest.raises(UsageError, match="text only"):
                session.generate(QUESTION, [photo])
            with pytest.raises(UsageError, match="text only"):
                session.generate(QUESTION, [photo], raw=True)
            assert len(finished(session.generate(QUESTION, max_new_tokens=3))) == 3

    def test_a_question_to_a_bundle_without_a_decoder(
        self, nano_bundle: Path, cache_home: Path, tmp_path: Path
    ) -> None:
        bundle = rewritten(
            nano_bundle,
            tmp_path,
            lambda m: dataclasses.replace(
                m,
                components=tuple(c for c in m.components if c.name != DECODER),
                decoder=None,
                embedding=None,
            ),
        )
        with Session.open(bundle, threads=1) as session, pytest.raises(UsageError, match="no decoder"):
            list(session.generate(QUESTION))

    def test_visual_tokens_that_do_not_fit_their_places_name_picture_and_tile(
        self, nano_bundle: Path, cache_home: Path, tmp_path: Path, photo: Path
    ) -> None:
        def coarser(manifest: Manifest) -> Manifest:
            assert manifest.vision is not None
            return dataclasses.replace(manifest, vision=dataclasses.replace(manifest.vision, patch_px=64))

        with Session.open(rewritten(nano_bundle, tmp_path, coarser)) as session:
            answer = session.generate(QUESTION, [photo], routing="fixed:1")
            with pytest.raises(BundleError) as caught:
                next(answer)
        assert "astronaut.png, tile 0" in caught.value.message
        assert "gave 36 visual tokens at 192 px, and 9 have their places" in caught.value.message

    def test_a_branch_or_routing_that_there_is_not(self, session: Session, photo: Path) -> None:
        with pytest.raises(UsageError, match="'tiles'"):
            session.generate(QUESTION, [photo], routing="tiles")
        with pytest.raises(UsageError, match="'huge'"):
            list(session.generate(QUESTION, [photo], branch="huge"))
        with pytest.raises(UsageError, match="max_new_tokens is 0"):
            session.generate(QUESTION, max_new_tokens=0)
        with pytest.raises(UsageError, match="threads is 0"):
            Session.open(session.bundle, threads=0)


class TestGraphs:
    def test_only_what_is_needed_is_opened(self, session: Session, photo: Path) -> None:
        assert session.weight_caches == {}
        finished(session.generate(QUESTION, max_new_tokens=1))
        assert set(session.weight_caches) == {"decoder"}
        finished(session.generate(QUESTION, [photo], routing="fixed:0.25", max_new_tokens=1))
        assert set(session.weight_caches) == {"decoder", "vision_base"}
        finished(session.generate(QUESTION, [photo], branch="large", max_new_tokens=1))
        assert set(session.weight_caches) == {"decoder", "vision_base", "vrc", "vision_large"}

    @pytest.mark.parametrize("backend", ["compiled", "interpreter"])
    def test_one_by_one_they_give_the_same_answers_and_nothing_is_computed_again(
        self, nano_bundle: Path, cache_home: Path, photo: Path, wide_photo: Path, backend: str
    ) -> None:
        """The second turn's picture closes the decoder, whose keys and values stay."""
        told: dict[Residency, list[tuple[list[int], int]]] = {}
        for residency in (TOGETHER, ONE_BY_ONE):
            with Session.open(nano_bundle, backend=backend, threads=1, residency=residency) as session:
                talk = session.conversation(routing="fixed:0.25", max_new_tokens=12)
                told[residency] = []
                for question, picture in ((QUESTION, photo), ("And this?", wide_photo)):
                    answer = talk.ask(question, [picture])
                    told[residency].append((finished(answer), answer.report.reused_tokens))
                assert answer.report.images[0].encoded_tiles == 0
        assert told[ONE_BY_ONE] == told[TOGETHER]
        assert told[ONE_BY_ONE][1][1] > 0

    def test_one_by_one_no_two_are_open(
        self, nano_bundle: Path, cache_home: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        open_now: list[frozenset[str]] = []
        with Session.open(nano_bundle, threads=1, residency=ONE_BY_ONE) as session:
            graph = session.graph

            def watched(component: str) -> Graph:
                found = graph(component)
                open_now.append(session.open_graphs)
                return found

            monkeypatch.setattr(session, "graph", watched)
            finished(session.generate(QUESTION, [photo], branch="large", max_new_tokens=2))
            assert set(session.weight_caches) == {"vrc", "vision_large", "decoder"}
        assert {name for names in open_now for name in names} == {"vrc", "vision_large", "decoder"}
        assert {len(names) for names in open_now} == {1}

    def test_a_second_session_finds_the_packed_weights(
        self, session: Session, nano_bundle: Path, cache_home: Path
    ) -> None:
        first = finished(session.generate(QUESTION, max_new_tokens=6))
        with Session.open(nano_bundle, threads=1) as second:
            assert finished(second.generate(QUESTION, max_new_tokens=6)) == first
            assert second.weight_caches == {"decoder": "reused"}
        assert len(list(cache_home.glob("*.xnn"))) == 1

    def test_a_session_without_a_weight_cache_writes_none(self, nano_bundle: Path, cache_home: Path) -> None:
        with Session.open(nano_bundle, weight_cache=False) as session:
            finished(session.generate(QUESTION, max_new_tokens=1))
            assert session.weight_caches == {"decoder": "off"}
        assert not cache_home.exists()

    def test_a_closed_session_says_so(self, session: Session) -> None:
        answer = session.generate(QUESTION, max_new_tokens=9)
        next(answer)
        session.close()
        assert answer.stop_reason == "cancelled"
        with pytest.raises(RuntimeError, match="closed"):
            list(session.generate(QUESTION))
        session.close()


def test_fifty_answers_do_not_make_the_process_grow(nano_bundle: Path, cache_home: Path, photo: Path) -> None:
    picture = Image.open(photo)
    with Session.open(nano_bundle, threads=1) as session:

        def ask(number: int) -> None:
            # Another system message each time: nothing is reused.
            finished(
                session.generate(QUESTION, [picture], system=str(number), max_new_tokens=8, routing="fixed:1")
            )

        for number in range(10):
            ask(number)
        give_back()  # what other tests of this process left to the allocator
        before = memory()
        for number in range(50):
            ask(1000 + number)
        give_back()
        after = memory()
    # One tile's features for every answer alone would be 0.7 MB.
    assert after.anonymous_bytes - before.anonymous_bytes < 4 << 20
