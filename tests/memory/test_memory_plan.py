"""The plan: which way is taken, what it says, and what is refused."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpi_runtime.errors import ResourceError, UsageError
from rpi_runtime.kernel import memory, memory_available
from rpi_runtime.manifest import DECODER, VISION_BASE, VISION_LARGE, VRC
from rpi_runtime.memory_plan import WAYS, Context, MemoryPlan, Needs, make_plan, parse_budget

MB = 1_000_000
NEEDS = Needs(
    process=70 * MB,
    graphs={VRC: 2 * MB, VISION_BASE: 20 * MB, VISION_LARGE: 24 * MB},
    weights={VRC: MB, VISION_BASE: 3 * MB, VISION_LARGE: 4 * MB, DECODER: 15 * MB},
    contexts={
        (1024, (8, 32)): Context(36 * MB, 40 * MB, MB, 4 * MB),
        (1024, (8,)): Context(30 * MB, 40 * MB, MB, 4 * MB),
        (256, (8, 32)): Context(36 * MB, 2 * MB, MB, MB),
        (256, ()): Context(28 * MB, 2 * MB, MB, MB),
    },
    tile_tokens=MB // 2,
    picture=10 * MB,
)
sizes = st.integers(0, 10_000 * MB)


@st.composite
def any_needs(draw: st.DrawFn) -> Needs:
    names = draw(st.sets(st.sampled_from([VRC, VISION_BASE, VISION_LARGE])))
    vision = bool(names)
    # A graph takes more than the visual tokens that wait for another.
    costs = {name: draw(st.integers(5 * MB, 10_000 * MB)) for name in sorted({*names, DECODER})}
    smaller = draw(st.integers(5 * MB, costs[DECODER]))
    return Needs(
        process=draw(st.integers(MB, 200 * MB)),
        graphs={name: costs[name] for name in names},
        weights={n: draw(st.integers(0, min(smaller, cost) - 5 * MB)) for n, cost in costs.items()},
        contexts={
            (tokens, sizes): Context(decoder, cost * tokens, cost, tile * tokens)
            for cost in [draw(st.integers(0, MB))]
            for tile in [draw(st.integers(0, 1000))]
            for tokens in sorted(draw(st.sets(st.integers(1, 4096), min_size=1, max_size=3)), reverse=True)
            for sizes, decoder in (((8, 32), costs[DECODER]), ((), smaller))
        },
        tile_tokens=0,
        picture=draw(st.integers(1, 100 * MB)) if vision else 0,
    )


def planned(budget: int) -> MemoryPlan:
    return make_plan(budget, NEEDS)


def peak_of(way: str, context: int = 1024, sizes: tuple[int, ...] = (8, 32)) -> int:
    return {(c.context_tokens, c.prefill_tokens, c.way): c.peak for c in planned(1000 * MB).choices}[
        context, sizes, way
    ]


def test_the_first_choice_that_fits_is_taken() -> None:
    choices = planned(1000 * MB).choices
    assert [choice.way for choice in choices] == list(WAYS) * len(NEEDS.contexts)
    assert list(dict.fromkeys((c.context_tokens, c.prefill_tokens) for c in choices)) == list(NEEDS.contexts)
    for choice in choices:
        found = planned(choice.peak)
        assert found.chosen == next(other for other in choices if other.peak <= choice.peak)
        assert found.peak <= choice.peak
    for way in WAYS:
        assert planned(peak_of(way)).chosen.way == way
        assert planned(peak_of(way)).head_room == 0
    assert planned(peak_of("together") - 1).chosen.way == "vision, then decoder"
    assert planned(peak_of("vision, then decoder") - 1).chosen.way == "one by one"


def test_a_long_context_comes_before_large_chunks_and_these_before_speed() -> None:
    assert peak_of("together", 256) < peak_of("vision, then decoder"), "the example tells the two apart"
    long = planned(peak_of("one by one", sizes=(8,)))
    assert (long.contexts, long.chosen.way) == ((256, 1024), "one by one")
    assert planned(peak_of("one by one") - 1).chosen.prefill_tokens == (8,)
    short = planned(long.peak - 1)
    assert short.contexts == (256,)
    assert short.chosen.prefill_tokens == (8, 32)


def test_together_everything_is_always_there() -> None:
    for phase in planned(1000 * MB).phases:
        assert phase.holds.keys() >= {*NEEDS.graphs, DECODER, "process", "keys and values"}
        assert phase.bytes == sum(phase.holds.values())


def test_one_by_one_a_phase_holds_its_own_graph() -> None:
    held = {
        phase.name: set(phase.holds) & {*NEEDS.graphs, DECODER}
        for phase in planned(peak_of("one by one")).phases
    }
    assert held == {
        "route": {VRC},
        "encode": {VISION_LARGE},  # the larger of the two
        "prefill": {DECODER},
        "decode": {DECODER},
    }


def test_a_budget_too_small_is_refused_with_the_smallest_that_would_do() -> None:
    least = peak_of("one by one", 256, ())
    with pytest.raises(ResourceError) as caught:
        planned(least - 1)
    assert f"a memory budget of {(least - 1) // MB} MB is too small" in caught.value.message
    said = int(caught.value.remedy.split()[1])
    assert planned(said * MB).chosen.way == "one by one"
    assert "encode, where process takes 70 MB" in caught.value.message
    assert "--context" in caught.value.remedy


def test_what_is_left_bounds_pictures_that_cannot_be_scaled() -> None:
    least = peak_of("one by one")
    pixels = [planned(least + more * MB).picture_pixels for more in (0, 10, 20)]
    assert pixels[0] == NEEDS.picture // 4
    assert pixels[1] - pixels[0] == pytest.approx(10 * MB / 1.03 / 4, abs=1)
    assert planned(5000 * MB).picture_pixels == 50_000_000


def test_visual_tokens_wait_only_where_graphs_are_not_open_together() -> None:
    together, apart = (
        {phase.name: phase.holds.get("visual tokens") for phase in planned(peak_of(way)).phases}
        for way in ("together", "vision, then decoder")
    )
    assert together == {"route": None, "read": MB // 2, "decode": None}
    waiting = {"encode": 4 * MB, "prefill": 4 * MB}
    assert apart == {"route": None, "decode": None, **waiting}


def test_text_alone_holds_no_picture() -> None:
    text = dataclasses.replace(NEEDS, graphs={}, weights={DECODER: 0}, picture=0, tile_tokens=0)
    plan = make_plan(1000 * MB, text)
    assert [phase.name for phase in plan.phases] == ["prefill", "decode"]
    for key in NEEDS.contexts:
        assert len({c.peak for c in plan.choices if (c.context_tokens, c.prefill_tokens) == key}) == 1


@given(any_needs(), sizes)
def test_a_plan_never_exceeds_its_budget_and_slower_ways_never_take_more(need: Needs, budget: int) -> None:
    generous = make_plan(1 << 50, need)
    assert generous.contexts == tuple(sorted({tokens for tokens, _ in need.contexts}))
    for first in range(0, len(generous.choices), len(WAYS)):
        together, apart, single = (choice.peak for choice in generous.choices[first : first + len(WAYS)])
        assert together >= apart >= single
    assert generous.peak >= max(phase.bytes for phase in generous.phases)
    fitting = [choice for choice in generous.choices if choice.peak <= budget]
    if fitting:
        plan = make_plan(budget, need)
        assert plan.peak <= budget
        assert plan.chosen == fitting[0]
        assert plan.contexts[-1] == max(choice.context_tokens for choice in fitting)
    else:
        with pytest.raises(ResourceError):
            make_plan(budget, need)


def test_weights_are_streamed_when_asked_and_nothing_else_fits() -> None:
    least = peak_of("one by one", 256, ())
    assert make_plan(least, NEEDS, stream_weights=True) == planned(least)
    with pytest.raises(ResourceError, match="is too small") as caught:
        planned(least - 1)
    assert "With --stream-weights this budget does" in caught.value.remedy
    plan = make_plan(least - 1, NEEDS, stream_weights=True)
    assert plan.peak + plan.head_room == plan.budget
    assert plan.streamed == {n: w - plan.head_room for n, w in NEEDS.weights.items() if w > plan.head_room}
    with pytest.raises(ResourceError) as caught:
        make_plan(50 * MB, NEEDS, stream_weights=True)
    assert int(caught.value.remedy.split()[1]) * MB < least
    assert "--stream-weights" not in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "count"),
    [("512MB", 512_000_000), ("1.5 GB", 1_500_000_000), ("512MiB", 512 << 20), ("2gib", 2 << 30), ("77", 77)],
)
def test_sizes_are_read_as_they_are_written(text: str, count: int) -> None:
    assert parse_budget(text) == count


@pytest.mark.parametrize("text", ["", "much", "-5MB", "5 XB", "1e3", "MB", "5MB5"])
def test_what_is_no_size_is_told(text: str) -> None:
    with pytest.raises(UsageError, match="is no size"):
        parse_budget(text)


def test_auto_is_what_there_is_with_a_margin() -> None:
    free, _ = memory_available()
    assert memory().resident_bytes < parse_budget("auto") < memory().resident_bytes + free
