"""Which answers count as right."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqa.scoring import exact_match, normalise, numeric_match

EXACT, NUMERIC, WRONG = "exact", "numeric", "wrong"


@pytest.mark.parametrize(
    ("expected", "answer", "verdict"),
    [
        ("3.5 bar", "3.5 bar", EXACT),
        ("3.5 bar", "  3.5\n BAR ", EXACT),
        ("not shown", "Not  shown", EXACT),
        ("not shown", "not shown.", WRONG),
        ("straße", "STRASSE", EXACT),
        ("5 m³/h", "5 m3/h", EXACT),
        ("20 ℃", "20 °C", EXACT),
        ("-4 °C", "\N{MINUS SIGN}4 °C", EXACT),
        ("on", "off", WRONG),
        ("on", "", WRONG),
        # The same number and unit, spelled otherwise.
        ("3.5 bar", "3.50 bar", NUMERIC),
        ("3.5 bar", "3.5bar", NUMERIC),
        ("3.5 bar", "03.5 bar", NUMERIC),
        ("0.5 bar", ".5 bar", NUMERIC),
        ("5 °C", "+5 ° C", NUMERIC),
        ("12", "12.0", NUMERIC),
        ("50 %", "50%", NUMERIC),
        # Another number, or another unit.
        ("3.5 bar", "3.51 bar", WRONG),
        ("3.5 bar", "-3.5 bar", WRONG),
        ("3.5 bar", "3.5", WRONG),
        ("3.5", "3.5 bar", WRONG),
        ("3.5 bar", "3.5 mbar", WRONG),
        ("3 MW", "3 mW", WRONG),
        ("3.0 MPa", "3 mPa", WRONG),
        ("3 MW", "3.0 MW", NUMERIC),
        ("3 kW", "3 KW", EXACT),
        ("5 MIN", "5 min", EXACT),
        # No single number is read out of these.
        ("12:30", "12.0:30", WRONG),
        ("1250", "1,250", WRONG),
        ("3-4", "3.0-4", WRONG),
        ("4.5.1", "4.50.1", WRONG),
        ("1e3", "1000", WRONG),
        # JSON is compared as JSON.
        ('{"value":3.5,"unit":"bar"}', ' { "unit": "Bar", "value": 3.50 }', EXACT),
        ('{"value": 3, "unit": "bar"}', '{"value": 3.0, "unit": "bar"}', EXACT),
        ('{"value": null}', '{"value": null}', EXACT),
        ('{"value":3.5,"unit":"bar"}', '{"value":3.6,"unit":"bar"}', WRONG),
        ('{"value":3.5,"unit":"bar"}', '{"value":"3.5","unit":"bar"}', WRONG),
        ('{"value":3.5,"unit":"bar"}', '{"value":3.5}', WRONG),
        ('{"value":3.5,"unit":"bar"}', '{"value":3.5,"unit":"bar"', WRONG),
        ('{"value":3.5,"unit":"bar"}', "3.5 bar", WRONG),
        ('{"value": 1}', '{"value": true}', WRONG),
        ('{"value": null}', '{"value": false}', WRONG),
        ('{"value": 1}', '{"value": NaN}', WRONG),
        ('{"value": 1}', '{"value": 1e99999999999999999999}', WRONG),
        ('{"value": 1}', "[" * 100_000, WRONG),
        ("[1, 2]", "[1,2.0]", EXACT),
        ("[1, 2]", "[2, 1]", WRONG),
    ],
)
def test_an_answer_is_judged(expected: str, answer: str, verdict: str) -> None:
    assert exact_match(answer, expected) == (verdict == EXACT)
    assert numeric_match(answer, expected) == (verdict != WRONG)


@given(st.text(), st.text())
def test_any_text_can_be_judged_and_a_numeric_match_is_the_weaker_one(answer: str, expected: str) -> None:
    assert exact_match(expected, expected)
    assert exact_match(answer, expected) == exact_match(expected, answer)
    assert numeric_match(answer, expected) >= exact_match(answer, expected)


@given(
    st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**6), max_value=10**6),
    st.integers(0, 4),
)
def test_zeros_behind_a_number_do_not_count(number: Decimal, zeros: int) -> None:
    assert numeric_match(f"{number}{'0' * zeros} kPa", f"{number} kPa")
    assert not numeric_match(f"{number + Decimal('0.001')} kPa", f"{number} kPa")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(st.dictionaries(st.text(), _JSON))
def test_how_json_is_written_does_not_count(value: dict[str, object]) -> None:
    turned = dict(reversed(value.items()))
    if len({normalise(key) for key in value}) == len(value):
        assert exact_match(json.dumps(turned, indent=3), json.dumps(value, ensure_ascii=False))
