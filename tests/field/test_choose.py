"""Which runtime a device gets, and which Python it runs on."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from field.choose import platform_of, python_of, why_not
from field.platforms import OWN
from rpi_runtime.errors import ResourceError, UsageError
from tests.field.recorded import machine

PI4 = machine("pi4_bookworm")


@pytest.mark.parametrize(
    ("name", "platform", "python"),
    [
        ("pi4_bookworm", "pi-arm64", "3.11"),
        ("pi3_32bit", "pi-armv7", OWN),  # a kernel of 64 bits below a system of 32
        ("android_pixel8", "android-arm64", OWN),
        ("alpine", "pi-arm64", OWN),  # musl
    ],
)
def test_a_device_gets_what_fits(name: str, platform: str, python: str) -> None:
    device = machine(name)
    assert platform_of(device).name == platform
    assert python_of(device, platform_of(device)) == python


@pytest.mark.parametrize(
    "changed", [{"machine": "riscv64"}, {"system": "Darwin"}, {"machine": "", "kernel_machine": ""}]
)
def test_another_architecture_or_system_is_refused_with_what_there_is(changed: dict[str, str]) -> None:
    with pytest.raises(ResourceError, match="no runtime exists for") as raised:
        platform_of(replace(PI4, **changed))  # type: ignore[arg-type]
    assert "pi-arm64" in raised.value.remedy


def test_a_python_that_will_not_do_is_passed_over_for_our_own() -> None:
    platform, python = platform_of(PI4), PI4.pythons[0]
    assert why_not(PI4, platform, python) == ""
    for device, other, why in (
        (replace(PI4, libc_version="2.24"), python, "glibc is 2.24"),
        (replace(PI4, libc="musl"), python, "the C library is musl"),
        (replace(PI4, libraries=()), python, "libstdc\\+\\+"),
        (PI4, replace(python, version="3.9.2"), "no wheels exist for Python 3.9"),
        (PI4, replace(python, bits=32), "32 bits"),
        (PI4, replace(python, missing=("ctypes",)), "ctypes"),
    ):
        changed = replace(device, pythons=(other,))
        assert python_of(changed, platform) == OWN
        assert re.search(why, why_not(changed, platform, other))


def test_the_newest_python_that_will_do_is_taken() -> None:
    python = PI4.pythons[0]
    pythons = tuple(replace(python, version=version) for version in ("3.9.2", "3.11.2", "3.13.5", "3.15.0"))
    assert python_of(replace(PI4, pythons=pythons), platform_of(PI4)) == "3.13"


@pytest.mark.parametrize(
    ("asked", "why"), [("3.12", "Python 3.12 is not there"), ("3.9", "not for pi-arm64"), ("new", "not for")]
)
def test_a_python_that_is_asked_for_and_will_not_do_is_refused(asked: str, why: str) -> None:
    with pytest.raises(UsageError, match=f"--python {asked}: {why}"):
        python_of(PI4, platform_of(PI4), asked)
    for able in ("3.11", OWN):
        assert python_of(PI4, platform_of(PI4), able) == able
