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
    graphs={VRC: 2 * MB, VISION_BASE: 24 * MB, VISION_LARGE: 27 * MB, DECODER: 20 * MB},
    weights={VRC: MB, VISION_BASE: 3 * MB, VISION_LARGE: 4 * MB, DECODER: 15 * MB},
    contexts={256: Context(2 * MB, MB, MB), 1024: Context(30 * MB, MB, 4 * MB)},
    tile_tokens=MB // 2,
    picture=10 * MB,
)
sizes = st.integers(0, 10_000 * MB)


@st.composite
def any_needs(draw: st.DrawFn) -> Needs:
    names = draw(st.sets(st.sampled_from([VRC, VISION_BASE, VISION_LARGE])))
    vision = bool(names)
    # A graph takes more than the visual tokens that wait for another.
    graphs = {name: draw(st.integers(5 * MB, 10_000 * MB)) for name in sorted({*names, DECODER})}
    return Needs(
        process=draw(st.integers(MB, 200 * MB)),
        graphs=graphs,
        weights={name: draw(st.integers(0, cost - 5 * MB)) for name, cost in graphs.items()},
        contexts={
            tokens: Context(cost * tokens, cost, tile * tokens)
            for cost in [draw(st.integers(0, MB))]
            for tile in [draw(st.integers(0, 1000))]
            for tokens in draw(st.sets(st.integers(1, 4096), min_size=1, max_size=3))
        },
        tile_tokens=0,
        picture=draw(st.integers(1, 100 * MB)) if vision else 0,
    )


def planned(budget: int) -> MemoryPlan:
    return make_plan(budget, NEEDS)


def test_the_fastest_way_that_fits_is_taken() -> None:
    peaks = planned(1000 * MB).peaks
    assert list(peaks) == [256, 1024]
    for ways in peaks.values():
        assert list(ways) == list(WAYS)
    for way, peak in peaks[1024].items():
        assert planned(peak).way == way
        assert planned(peak).head_room == 0
    assert planned(peaks[1024]["together"] - 1).way == "vision, then decoder"
    assert planned(peaks[1024]["vision, then decoder"] - 1).way == "one by one"


def test_a_long_context_comes_before_speed() -> None:
    peaks = planned(1000 * MB).peaks
    assert peaks[256]["together"] < peaks[1024]["vision, then decoder"], "the example tells the two apart"
    long = planned(peaks[1024]["one by one"])
    assert (long.contexts, long.way) == ((256, 1024), "one by one")
    short = planned(peaks[1024]["one by one"] - 1)
    assert short.contexts == (256,)
    assert short.way == next(way for way, peak in peaks[256].items() if peak <= short.budget)
    assert short.peak == peaks[256][short.way]


def test_together_everything_is_always_there() -> None:
    for phase in planned(1000 * MB).phases:
        assert phase.holds.keys() >= {*NEEDS.graphs, "process", "keys and values"}
        assert phase.bytes == sum(phase.holds.values())


def test_one_by_one_a_phase_holds_its_own_graph() -> None:
    held = {
        phase.name: set(phase.holds) & set(NEEDS.graphs)
        for phase in planned(planned(1000 * MB).peaks[1024]["one by one"]).phases
    }
    assert held == {
        "route": {VRC},
        "encode": {VISION_LARGE},  # the larger of the two
        "prefill": {DECODER},
        "decode": {DECODER},
    }


def test_a_budget_too_small_is_refused_with_the_smallest_that_would_do() -> None:
    least = planned(1000 * MB).peaks[256]["one by one"]
    with pytest.raises(ResourceError) as caught:
        planned(least - 1)
    assert f"a memory budget of {(least - 1) // MB} MB is too small" in caught.value.message
    said = int(caught.value.remedy.split()[1])
    assert planned(said * MB).way == "one by one"
    assert "encode, where process takes 70 MB" in caught.value.message
    assert "--context" in caught.value.remedy


def test_what_is_left_bounds_pictures_that_cannot_be_scaled() -> None:
    least = planned(1000 * MB).peaks[1024]["one by one"]
    pixels = [planned(least + more * MB).picture_pixels for more in (0, 10, 20)]
    assert pixels[0] == NEEDS.picture // 4
    assert pixels[1] - pixels[0] == pytest.approx(10 * MB / 1.03 / 4, abs=1)
    assert planned(5000 * MB).picture_pixels == 50_000_000


def test_visual_tokens_wait_only_where_graphs_are_not_open_together() -> None:
    peaks = planned(1000 * MB).peaks[1024]
    together, apart = (
        {phase.name: phase.holds.get("visual tokens") for phase in planned(peaks[way]).phases}
        for way in ("together", "vision, then decoder")
    )
    assert together == {"route": None, "read": MB // 2, "decode": None}
    waiting = {"encode": 4 * MB, "prefill": 4 * MB}
    assert apart == {"route": None, "decode": None, **waiting}


def test_text_alone_holds_no_picture() -> None:
    text = dataclasses.replace(
        NEEDS, graphs={DECODER: 20 * MB}, weights={DECODER: 0}, picture=0, tile_tokens=0
    )
    plan = make_plan(1000 * MB, text)
    assert [phase.name for phase in plan.phases] == ["prefill", "decode"]
    assert all(len(set(ways.values())) == 1 for ways in plan.peaks.values())


@given(any_needs(), sizes)
def test_a_plan_never_exceeds_its_budget_and_slower_ways_never_take_more(need: Needs, budget: int) -> None:
    generous = make_plan(1 << 50, need)
    assert generous.contexts == tuple(sorted(need.contexts))
    for ways in generous.peaks.values():
        together, apart, single = (ways[way] for way in WAYS)
        assert together >= apart >= single
    assert generous.peak >= max(phase.bytes for phase in generous.phases)
    if budget >= generous.peaks[min(need.contexts)]["one by one"]:
        plan = make_plan(budget, need)
        assert plan.peak <= budget
        longest = max(tokens for tokens, ways in plan.peaks.items() if min(ways.values()) <= budget)
        assert plan.contexts[-1] == longest
        assert plan.way == next(way for way in WAYS if plan.peaks[longest][way] <= budget)
    else:
        with pytest.raises(ResourceError):
            make_plan(budget, need)


def test_weights_are_streamed_when_asked_and_nothing_else_fits() -> None:
    least = planned(1000 * MB).peaks[256]["one by one"]
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
