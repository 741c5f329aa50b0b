"""The plan: which way is taken, what it says, and what is refused."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpi_runtime.errors import ResourceError, UsageError
from rpi_runtime.image_header import MAX_SOURCE_PIXELS
from rpi_runtime.kernel import limit_data, memory, memory_available
from rpi_runtime.manifest import DECODER, VISION_BASE, VISION_LARGE, VRC, VisionSpec
from rpi_runtime.memory_plan import (
    MARGIN,
    WAYS,
    Context,
    MemoryPlan,
    Needs,
    make_plan,
    parse_budget,
)
from rpi_runtime.picture_needs import PictureNeeds, any_picture, jpeg_of
from rpi_runtime.tiling import plan_grid

MB = 1_000_000
PICTURE = PictureNeeds(decoding=4 * MB, spooling=5 * MB, tile=2 * MB, tiles=12)
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
    picture=PICTURE,
)
sizes = st.integers(0, 10_000 * MB)


@st.composite
def any_needs(draw: st.DrawFn) -> Needs:
    names = draw(st.sets(st.sampled_from([VRC, VISION_BASE, VISION_LARGE])))
    vision = bool(names)
    # A graph takes more than the visual tokens that wait for another, and than a band of a picture.
    costs = {name: draw(st.integers(5 * MB, 10_000 * MB)) for name in sorted({*names, DECODER})}
    smaller = draw(st.integers(5 * MB, costs[DECODER]))
    decoding = draw(st.integers(1, 100 * MB))
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
        picture=PictureNeeds(
            decoding, decoding + draw(st.integers(0, 2 * MB)), draw(st.integers(1, 10 * MB)), tiles=12
        )
        if vision
        else None,
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
        "open": set(),
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
    assert "prefill, where process takes 70 MB" in caught.value.message
    assert "--context" in caught.value.remedy


def test_what_is_left_bounds_a_picture_whichever_way_was_chosen() -> None:
    for way in WAYS:
        plan = planned(peak_of(way))
        assert plan.chosen.way == way
        beside = NEEDS.process + 41 * MB + (0 if way == "together" else 4 * MB)
        assert plan.chosen.beside_picture == beside
        assert plan.picture_bytes == pytest.approx(plan.budget / (1 + MARGIN) - beside, abs=1)
        assert plan.picture_bytes >= PICTURE.spooling, "those that can be scaled always fit"


def test_a_larger_budget_takes_every_picture_that_a_smaller_one_with_the_same_context_takes() -> None:
    plans = [planned(budget * MB) for budget in range(130, 300)]
    for tokens in (256, 1024):
        rooms = [plan.picture_bytes for plan in plans if plan.chosen.context_tokens == tokens]
        assert len(rooms) > 10
        assert rooms == sorted(rooms)


@given(st.integers(120, 400), st.integers(MB, 300 * MB))
def test_the_budget_that_is_named_for_a_picture_does_also_where_another_start_holds_more(
    budget: int, spooling: int
) -> None:
    told = int(planned(budget * MB).budget_for(spooling).split()[0]) * MB
    assert planned(told).picture_bytes >= spooling
    heavier = dataclasses.replace(NEEDS, process=NEEDS.process + 9 * MB // 10)
    assert make_plan(told, heavier).picture_bytes >= spooling
    most_beside = max(choice.beside_picture for choice in planned(1000 * MB).choices)
    assert told <= max(budget * MB, (1 + MARGIN) * (most_beside + spooling)) + 3 * MB


def test_the_budget_that_keeps_a_picture_in_memory_does() -> None:
    told = int(planned(peak_of("one by one")).budget_to_hold(50 * MB).split()[0]) * MB
    assert not planned(told).spools(50 * MB)


def test_where_all_is_open_together_a_large_picture_has_it_closed_and_waits_on_disk() -> None:
    plan = planned(peak_of("together") + 10 * MB)
    assert not plan.spools(PICTURE.decoding)
    assert not plan.spools(PICTURE.decoding + 9 * MB)
    assert plan.spools(PICTURE.decoding + 11 * MB)
    held, spooled = (plan.peak_with(PictureNeeds(count * MB, 50 * MB, MB, 12)) for count in (5, 50))
    assert max(held, spooled) <= plan.budget
    refused = PictureNeeds(plan.picture_bytes, plan.picture_bytes + 2, MB, 12)
    assert plan.peak_with(refused) > plan.budget


def test_a_picture_is_decoded_beside_no_graph_and_waits_on_disk_where_memory_is_scarce() -> None:
    for way in ("vision, then decoder", "one by one"):
        plan = planned(peak_of(way))
        assert plan.spools(0)
        (opening,) = (phase for phase in plan.phases if "picture" in phase.holds)
        assert not opening.holds.keys() & {*NEEDS.graphs, DECODER}
        assert {phase.name for phase in plan.phases if "tile" in phase.holds} == {"route", "encode"}
    assert not planned(peak_of("together")).spools(PICTURE.decoding)


@settings(max_examples=500)
@given(
    side=st.sampled_from([64, 224, 384, 512]),
    tiles=st.integers(1, 12),
    width=st.integers(1, 1 << 16),
    share=st.floats(0, 1),
)
def test_no_tile_takes_more_than_the_plan_counts(side: int, tiles: int, width: int, share: float) -> None:
    spec = VisionSpec(side, (side,), tiles, True, 16, (1.0,), 64, 0.5)
    height = max(1, int(share * min(1 << 16, MAX_SOURCE_PIXELS // width)))  # as a JPEG may have
    needs, most = jpeg_of(width, height, plan_grid(width, height, spec)), any_picture(spec)
    assert needs.tile <= most.tile
    assert needs.tiles <= most.tiles


def test_what_an_answer_about_one_picture_takes() -> None:
    plan = planned(peak_of("one by one"))
    assert plan.peak_with(PICTURE) == plan.peak
    small = plan.peak_with(PictureNeeds(MB, MB, MB, 12))
    large = plan.peak_with(PictureNeeds(80 * MB, 80 * MB, MB, 12))
    assert small <= plan.peak < large


def test_a_picture_of_one_tile_uses_one_side_and_takes_less() -> None:
    need = dataclasses.replace(NEEDS, spared={VISION_BASE: (3 * MB, MB, 0), VISION_LARGE: (4 * MB, MB, 0)})
    plan = make_plan(1000 * MB, need)
    assert plan.chosen.way == "together"

    def peak(tiles: int) -> int:
        return plan.peak_with(dataclasses.replace(PICTURE, tiles=tiles))

    assert peak(3) == peak(12) == plan.peak
    assert plan.peak - peak(1) == pytest.approx((1 + MARGIN) * 7 * MB, abs=1)
    assert plan.peak - peak(2) == pytest.approx((1 + MARGIN) * 2 * MB, abs=1)


def test_visual_tokens_wait_only_where_graphs_are_not_open_together() -> None:
    together, apart = (
        {phase.name: phase.holds.get("visual tokens") for phase in planned(peak_of(way)).phases}
        for way in ("together", "vision, then decoder")
    )
    assert together == {"route": None, "read": MB // 2, "decode": None}
    assert apart == {**dict.fromkeys(("open", "route", "encode", "prefill"), 4 * MB), "decode": None}


def test_text_alone_holds_no_picture() -> None:
    text = dataclasses.replace(NEEDS, graphs={}, weights={DECODER: 0}, picture=None, tile_tokens=0)
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


def test_auto_sees_the_limits_of_its_own_process() -> None:
    lift = limit_data(memory().data_bytes + 300 * MB)
    try:
        free, source = memory_available()
        assert 0 < free <= 300 * MB
        assert source == "limit of this process (ulimit -d)"
        assert parse_budget("auto") < memory().resident_bytes + 300 * MB
    finally:
        lift()
