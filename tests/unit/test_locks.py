"""What is locked: everything with hashes and no index, what is asked for, and the same wherever two locks meet."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.serving import ROOT

LOCKS = ("uv", "serving", "build", "test", "cuda", "openvino", "cpu")


def direct(name: str) -> set[str]:
    """The canonical names that requirements/NAME.in asks for, those of the files it includes among them."""
    lines = (ROOT / f"requirements/{name}.in").read_text(encoding="utf-8").splitlines()
    included = [direct(line.removeprefix("-r ").removesuffix(".in")) for line in lines if line.startswith("-r ")]
    stripped = [line.partition("  #")[0].strip() for line in lines]
    return {canonicalize_name(Requirement(line).name) for line in stripped if line and not line.startswith(("#", "-"))}.union(*included)


@cache
def locked(name: str) -> tuple[Requirement, ...]:
    """The pins of requirements/NAME.txt."""
    text = (ROOT / f"requirements/{name}.txt").read_text(encoding="utf-8")
    return tuple(Requirement(line.removesuffix("\\").strip()) for line in text.splitlines() if re.match(r"^[A-Za-z0-9]", line))


def pins(name: str) -> Iterator[tuple[str, str]]:
    for requirement in locked(name):
        yield canonicalize_name(requirement.name), str(requirement.specifier)


@pytest.mark.parametrize("name", LOCKS)
def test_lock_pins_everything_with_hashes_and_names_no_index(name: str) -> None:
    text = (ROOT / f"requirements/{name}.txt").read_text(encoding="utf-8")
    assert "://" not in text
    assert "--index" not in text
    assert "--find-links" not in text
    entries = re.split(r"\n(?=[A-Za-z0-9])", text)
    assert len(entries) == len(locked(name)) > 0
    for entry in entries:
        assert re.match(r"^\S+==\S+", entry), entry.splitlines()[0]
        assert "--hash=sha256:" in entry, entry.splitlines()[0]


@pytest.mark.parametrize("name", LOCKS)
def test_lock_holds_what_is_asked_for(name: str) -> None:
    assert direct(name) <= {pin for pin, _ in pins(name)}


@pytest.mark.parametrize(("one", "other"), [(a, b) for i, a in enumerate(LOCKS[1:]) for b in LOCKS[i + 2 :]])
def test_locks_agree_where_they_meet(one: str, other: str) -> None:
    """One environment holds them all, so what is tested is what is served."""
    names = {pin for pin, _ in pins(one)} & {pin for pin, _ in pins(other)}
    assert {pin for pin in pins(one) if pin[0] in names} == {pin for pin in pins(other) if pin[0] in names}


def test_serving_holds_nothing_of_the_torch_side() -> None:
    names = {pin for pin, _ in pins("serving")}
    assert not names & {"torch", "torchvision", "onnx", "onnxsim", "onnxscript", "scikit-learn", "safetensors", "triton"}


@pytest.mark.parametrize("lock", ["serving", "cuda"])
@pytest.mark.parametrize(
    ("system", "machine", "expected"),
    [
        ("linux", "x86_64", "onnxruntime-gpu"),
        ("linux", "aarch64", "onnxruntime"),
        ("darwin", "arm64", "onnxruntime"),
        ("win32", "AMD64", "onnxruntime"),
    ],
)
def test_exactly_one_onnxruntime_on_every_platform(lock: str, system: str, machine: str, expected: str) -> None:
    environment = {"sys_platform": system, "platform_machine": machine}
    chosen = [
        requirement.name
        for requirement in locked(lock)
        if requirement.name.startswith("onnxruntime") and (requirement.marker is None or requirement.marker.evaluate(environment))
    ]
    assert chosen == [expected]


def test_bentoml_is_pinned_to_the_version_whose_internals_are_used() -> None:
    asked = (ROOT / "requirements/base.in").read_text(encoding="utf-8")
    pinned = next(specifier for name, specifier in pins("serving") if name == "bentoml")
    assert f"bentoml{pinned}" in asked
