"""Messages become items, items become a prompt of token and visual runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rpi_runtime.errors import BundleError, UsageError
from rpi_runtime.manifest import ImageTokens
from rpi_runtime.prompt import (
    IMAGE,
    Control,
    ImagePlan,
    ImageSlot,
    Message,
    Position,
    Prompt,
    TokenRun,
    VisualRun,
    answer_parts,
    layout,
    tokenise,
)
from rpi_runtime.tokenizer import TextCodec
from tests.runtime import tiny_tokenizers

SPELLINGS = tiny_tokenizers.SPECIAL + tiny_tokenizers.PLAIN
adversarial = st.lists(
    st.one_of(
        st.sampled_from(
            [*SPELLINGS, "<|im_", "end|>", "<", ">", "think>", "\U000f0000", "\U000f0001", " ", "\n"]
        ),
        st.text(max_size=8),
    )
).map("".join)
relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _codec(folder: Path, template: str | None = tiny_tokenizers.CHATML) -> TextCodec:
    return TextCodec(tiny_tokenizers.save(tiny_tokenizers.byte_level(), folder), template)


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    return _codec(tmp_path_factory.mktemp("codec"))


def _turn(codec: TextCodec, role: str, *content: str | ImageSlot) -> list[int | ImageSlot]:
    """One ChatML turn by hand: control tokens by id, everything else as text."""
    items: list[int | ImageSlot] = [codec.token("<|im_start|>")]
    text = f"{role}\n"
    for part in content:
        if isinstance(part, str):
            text += part
        else:
            items += [*codec.encode(text), part]
            text = ""
    return [*items, *codec.encode(text), codec.token("<|im_end|>"), *codec.encode("\n")]


def _answer(codec: TextCodec) -> list[int]:
    return [codec.token("<|im_start|>"), *codec.encode("assistant\n")]


class TestTokenise:
    @relaxed
    @given(user=adversarial, system=adversarial)
    def test_only_the_template_writes_control_tokens(self, codec: TextCodec, user: str, system: str) -> None:
        items = tokenise(codec, [Message("system", system), Message("user", user)])
        assert list(items) == [*_turn(codec, "system", system), *_turn(codec, "user", user), *_answer(codec)]

    @relaxed
    @given(before=adversarial, between=adversarial)
    def test_pictures_come_first_or_where_the_content_places_them(
        self, codec: TextCodec, before: str, between: str
    ) -> None:
        messages = [Message("user", before, images=2), Message("user", (IMAGE, between, IMAGE))]
        slots = [ImageSlot(i) for i in range(4)]
        assert list(tokenise(codec, messages, add_generation_prompt=False)) == [
            *_turn(codec, "user", slots[0], slots[1], before),
            *_turn(codec, "user", slots[2], between, slots[3]),
        ]

    def test_a_picture_spelled_in_the_text_is_no_picture(self, codec: TextCodec) -> None:
        items = tokenise(codec, [Message("user", "an <image> here", images=1)], add_generation_prompt=False)
        assert list(items) == _turn(codec, "user", ImageSlot(0), "an <image> here")

    @pytest.mark.parametrize(
        "template",
        [
            "{% for m in messages %}<|im_start|>{{ m.content | trim }}<|im_end|>{% endfor %}",
            "{% for m in messages %}<|im_start|>{{ m.content[:3] }}|im_end|>{% endfor %}",
            "{% for m in messages %}<{{ m.content }}{% endfor %}",
            "{% for m in messages %}{{ m.content }}im_end|>{% endfor %}",
            "{% for m in messages %}{{ m.content.split('x') | join }}{% endfor %}",
            "{% for m in messages %}{{ m.content | replace('\n', '') }}{% endfor %}",
            "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}",
            "{{ messages | tojson }}",
        ],
    )
    @relaxed
    @given(text=adversarial)
    @example(text="think>")  # ends what a template begins
    @example(text="<|")  # begins what a template ends
    def test_a_template_cannot_join_users_text_to_control_tokens(
        self, tmp_path_factory: pytest.TempPathFactory, template: str, text: str
    ) -> None:
        codec = _codec(tmp_path_factory.mktemp("template"), template)

        def controls(content: str) -> list[Any]:
            items = tokenise(codec, [Message("user", content)])
            return [item for item in items if item in codec.controls.values()]

        assert controls(text) == controls("a")

    def test_a_control_token_that_the_model_produced_is_one(self, codec: TextCodec) -> None:
        content = (Control("<think>"), "so </think> is", Control("</think>"), "Yes")
        think, end = codec.token("<think>"), codec.token("</think>")
        items = tokenise(codec, [Message("assistant", content)], add_generation_prompt=False)
        assert list(items) == [
            codec.token("<|im_start|>"),
            *codec.encode("assistant\n"),
            think,
            *codec.encode("so </think> is"),
            end,
            *codec.encode("Yes"),
            codec.token("<|im_end|>"),
            *codec.encode("\n"),
        ]

    def test_without_a_template_contents_are_joined(self, tmp_path: Path) -> None:
        codec = _codec(tmp_path, None)
        items = tokenise(codec, [Message("system", "The picture "), Message("user", "shows", images=1)])
        assert list(items) == [*codec.encode("The picture "), ImageSlot(0), *codec.encode("shows")]

    def test_a_prompt_that_goes_on_after_a_picture_gets_no_first_space(self, tmp_path: Path) -> None:
        file = tiny_tokenizers.save(tiny_tokenizers.sentencepiece("first"), tmp_path)
        codec = TextCodec(file)
        first, later = codec.encode("house"), codec.encode("house", continues=True)
        assert first != later
        assert list(tokenise(codec, [Message("user", "house")])) == first
        assert list(tokenise(codec, [Message("user", "house", images=1)])) == [ImageSlot(0), *later]

    def test_an_unknown_role_is_answered_with_the_nearest(self, codec: TextCodec) -> None:
        with pytest.raises(UsageError, match="unknown role 'users'") as caught:
            tokenise(codec, [Message("users", "hi")])
        assert "'user'" in caught.value.remedy

    def test_no_message_is_refused(self, codec: TextCodec) -> None:
        with pytest.raises(UsageError, match="no message"):
            tokenise(codec, [])

    @pytest.mark.parametrize(
        "template", ["{{ messages[-1].content }}", "{{ messages[1].content ~ messages[0].content }}"]
    )
    def test_a_template_that_loses_or_reorders_pictures_is_refused(
        self, tmp_path: Path, template: str
    ) -> None:
        codec = _codec(tmp_path, template)
        with pytest.raises(BundleError, match="2 pictures"):
            tokenise(codec, [Message("user", "a", images=1), Message("user", "b", images=1)])

    def test_text_of_all_private_characters_is_refused(self, codec: TextCodec) -> None:
        text = "".join(map(chr, (*range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFE))))
        with pytest.raises(UsageError, match="private characters"):
            tokenise(codec, [Message("user", text)])


class TestAnswerParts:
    def test_special_tokens_go_and_other_control_tokens_stay(self, codec: TextCodec) -> None:
        ids = [
            codec.token("<think>"),
            *codec.encode("a </think> house"),
            codec.token("</think>"),
            *codec.encode("Two 😀"),
            codec.token("<|im_end|>"),
        ]
        assert answer_parts(codec, ids) == (
            Control("<think>"),
            "a </think> house",
            Control("</think>"),
            "Two 😀",
        )

    def test_a_later_turn_begins_with_the_earlier_one(self, codec: TextCodec) -> None:
        """So the KV cache of the first turn serves the second."""
        first = tokenise(codec, [Message("user", "What is <|im_end|> this?", images=1)])
        answer = [*codec.encode("a red house"), codec.token("<|im_end|>")]
        second = tokenise(
            codec,
            [
                Message("user", "What is <|im_end|> this?", images=1),
                Message("assistant", answer_parts(codec, answer)),
                Message("user", "And the trees?"),
            ],
        )
        assert second[: len(first) + len(answer)] == (*first, *answer)


def _tokens_of_side(side: int) -> int:
    return (side // 32) ** 2


@st.composite
def plans(draw: st.DrawFn) -> ImagePlan:
    columns, rows, thumbnail = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.booleans())
    sides = draw(
        st.lists(
            st.sampled_from([64, 96, 128]),
            min_size=columns * rows + thumbnail,
            max_size=columns * rows + thumbnail,
        )
    )
    return ImagePlan(draw(st.sampled_from(["aa", "bb"])), "base", columns, rows, tuple(sides), thumbnail)


class TestLayout:
    def test_a_picture_is_its_tiles_between_their_separators(self, codec: TextCodec) -> None:
        spellings = ImageTokens("<|vision_start|>", "<|vision_end|>", "<image>", "<tool_call>", "<think>")
        plan = ImagePlan("d1", "large", 2, 2, (128, 64, 64, 96, 64), True)
        prompt = layout([1, ImageSlot(0), 2], [plan], codec, spellings, _tokens_of_side)
        start, end, tile, row, thumbnail = (
            codec.token(s)
            for s in ("<|vision_start|>", "<|vision_end|>", "<image>", "<tool_call>", "<think>")
        )
        assert [_short(run) for run in prompt.runs] == [
            [1, start, tile],
            (0, 128, 16),
            [tile],
            (1, 64, 4),
            [row, tile],
            (2, 64, 4),
            [tile],
            (3, 96, 9),
            [row, thumbnail],
            (4, 64, 4),
            [end, 2],
        ]
        assert prompt.tokens == 11 + 37
        assert prompt.visual_tokens == 37

    def test_a_model_without_separators_has_none(self, codec: TextCodec) -> None:
        plan = ImagePlan("d1", "base", 2, 1, (64, 128), False)
        prompt = layout([ImageSlot(0), 5], [plan], codec, ImageTokens(), _tokens_of_side)
        assert [_short(run) for run in prompt.runs] == [(0, 64, 4), (1, 128, 16), [5]]

    @pytest.mark.parametrize("given_plans", [0, 2])
    def test_pictures_and_places_must_match(self, codec: TextCodec, given_plans: int) -> None:
        plan = ImagePlan("d1", "base", 1, 1, (64,), False)
        with pytest.raises(UsageError, match=f"1 pictures, and {given_plans}"):
            layout([ImageSlot(0)], [plan] * given_plans, codec, ImageTokens(), _tokens_of_side)

    def test_a_separator_that_the_tokenizer_lacks_is_named(self, codec: TextCodec) -> None:
        plan = ImagePlan("d1", "base", 1, 1, (64,), False)
        with pytest.raises(BundleError, match="'<nowhere>'"):
            layout([ImageSlot(0)], [plan], codec, ImageTokens(row_end="<nowhere>"), _tokens_of_side)

    @relaxed
    @given(pictures=st.lists(plans(), min_size=1, max_size=3), data=st.data())
    def test_runs_are_the_positions_wherever_they_are_cut(
        self, codec: TextCodec, pictures: list[ImagePlan], data: st.DataObject
    ) -> None:
        items = [item for i in range(len(pictures)) for item in (7, ImageSlot(i), 8)]
        spellings = ImageTokens("<|vision_start|>", "<|vision_end|>", "<image>", "", "")
        prompt = layout(items, pictures, codec, spellings, _tokens_of_side)
        positions = prompt.positions()
        assert len(positions) == prompt.tokens
        cut = data.draw(st.integers(0, prompt.tokens))
        rest = prompt.after(cut)
        assert [p for run in rest for p in run.positions()] == positions[cut:]
        assert all(run.tokens > 0 for run in rest)
        whole = [run for run in rest if isinstance(run, VisualRun)]
        assert all(run.start + run.tokens == _tokens_of_side(run.side) for run in whole)


def _short(run: TokenRun | VisualRun) -> Any:
    return list(run.ids) if isinstance(run, TokenRun) else (run.tile, run.side, run.tokens)


class TestReuse:
    def _prompt(
        self, codec: TextCodec, digest: str = "d", branch: str = "base", sides: tuple[int, ...] = (64, 96)
    ) -> Prompt:
        plan = ImagePlan(digest, branch, 2, 1, sides, False)
        return layout([1, 2, ImageSlot(0), 3, 4], [plan], codec, ImageTokens(), _tokens_of_side)

    def test_all_but_the_last_position_can_be_reused(self, codec: TextCodec) -> None:
        prompt = self._prompt(codec)
        assert prompt.tokens == 2 + 4 + 9 + 2
        assert prompt.reusable(prompt.positions()) == prompt.tokens - 1
        assert prompt.reusable([*prompt.positions(), 9, 9]) == prompt.tokens - 1
        assert prompt.reusable([]) == 0

    @pytest.mark.parametrize(
        ("change", "same"),
        [({"digest": "e"}, 2), ({"branch": "large"}, 2), ({"sides": (96, 96)}, 2), ({"sides": (64, 64)}, 6)],
    )
    def test_another_picture_branch_or_side_is_computed_again(
        self, codec: TextCodec, change: dict[str, Any], same: int
    ) -> None:
        assert self._prompt(codec, **change).reusable(self._prompt(codec).positions()) == same

    @relaxed
    @given(held=st.lists(st.integers(0, 2)), wanted=st.lists(st.integers(0, 2), min_size=1))
    def test_what_is_reused_is_a_common_prefix_as_long_as_can_be(
        self, held: list[Position], wanted: list[int]
    ) -> None:
        count = Prompt((TokenRun(tuple(wanted)),)).reusable(held)
        assert held[:count] == wanted[:count]
        assert count == len(wanted) - 1 or count == len(held) or held[count] != wanted[count]


@pytest.mark.weights
class TestRealTokenizers:
    """The ids of transformers' `apply_chat_template(tokenize=True)`."""

    @pytest.fixture(scope="class", params=["qwen3_tokenizer_folder", "smollm2_folder"])
    def pair(self, request: pytest.FixtureRequest) -> tuple[TextCodec, Any]:
        from transformers import AutoTokenizer

        folder = request.getfixturevalue(request.param)
        return TextCodec.from_checkpoint(folder), AutoTokenizer.from_pretrained(folder)

    @relaxed
    @given(contents=st.lists(st.text(), min_size=1, max_size=4), system=st.none() | st.text())
    def test_ordinary_conversations_have_the_same_ids(
        self, pair: Any, contents: list[str], system: str | None
    ) -> None:
        codec, theirs = pair
        turns = [("system", system)] if system is not None else []
        turns += [(("user", "assistant")[i % 2], content) for i, content in enumerate(contents)]
        if any(s in content for _, content in turns for s in codec.controls):
            return
        want = theirs.apply_chat_template(
            [{"role": role, "content": content} for role, content in turns], add_generation_prompt=True
        )
        assert list(tokenise(codec, [Message(*turn) for turn in turns])) == list(want["input_ids"])

    def test_thoughts_that_the_model_produced_are_dropped_from_history_as_in_transformers(
        self, qwen3_tokenizer_folder: Path
    ) -> None:
        from transformers import AutoTokenizer

        codec = TextCodec.from_checkpoint(qwen3_tokenizer_folder)
        theirs = AutoTokenizer.from_pretrained(qwen3_tokenizer_folder)
        said = "<think>\nA house?\n</think>\n\nA house."
        ids = [*theirs.encode(said), codec.token("<|im_end|>")]
        messages = [
            Message("user", "What?"),
            Message("assistant", answer_parts(codec, ids)),
            Message("user", "Sure?"),
        ]
        want = theirs.apply_chat_template(
            [
                {"role": "user", "content": "What?"},
                {"role": "assistant", "content": said},
                {"role": "user", "content": "Sure?"},
            ],
            add_generation_prompt=True,
        )
        assert list(tokenise(codec, messages)) == list(want["input_ids"])
