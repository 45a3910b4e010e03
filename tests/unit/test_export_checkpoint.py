"""Research checkpoints: unwrapped, without prefixes, nothing unpickled that could run code, and one clear line where they do not fit."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ortserve.errors import SourceError
from ortserve.export.checkpoint import load_weights


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def trained() -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    return {key: torch.rand_like(value) if value.is_floating_point() else value for key, value in net().state_dict().items()}


WRAPPINGS: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 90, "optimizer": {"lr": 0.1}},
    "model": lambda state: {"model": state, "args": {"width": 4}},
    "nested": lambda state: {"model": {"state_dict": state}, "epoch": 3},
    "DataParallel": lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
    "compiled and parallel": lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()},
    "without batch counts": lambda state: {key: value for key, value in state.items() if "num_batches" not in key},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".th"])
def test_weights_arrive_however_they_were_wrapped(tmp_path: Path, wrapping: str, suffix: str) -> None:
    path, model = tmp_path / f"weights{suffix}", net()
    torch.save(WRAPPINGS[wrapping](trained()), path)
    load_weights(model, path)
    assert all(torch.equal(value, trained()[key]) for key, value in model.state_dict().items() if "num_batches" not in key)


def test_safetensors_are_read(tmp_path: Path) -> None:
    path, model = tmp_path / "weights.safetensors", net()
    save_file(trained(), path)
    load_weights(model, path)
    assert torch.equal(model.state_dict()["0.weight"], trained()["0.weight"])


def test_module_called_module_keeps_its_name(tmp_path: Path) -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module, self.head = nn.Linear(2, 2), nn.Linear(2, 2)

    path, model = tmp_path / "weights.pt", Holder()
    torch.save({key: torch.ones_like(value) for key, value in model.state_dict().items()}, path)
    load_weights(model, path)
    assert bool((model.module.weight == 1).all())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: {key: value for key, value in state.items() if key != "0.weight"}, "1 missing (0.weight)"),
        (lambda state: {**state, "aux.weight": torch.ones(1)}, "1 unexpected (aux.weight)"),
        (lambda state: {**state, "0.bias": torch.ones(9)}, "1 of another shape (0.bias [9] for [4])"),
    ],
)
def test_weights_that_do_not_fit_name_the_keys_and_the_remedy(tmp_path: Path, change: Callable[[Any], Any], words: str) -> None:
    path = tmp_path / "weights.pth"
    torch.save(change(trained()), path)
    with pytest.raises(SourceError, match="build the model with the arguments it was trained with") as caught:
        load_weights(net(), path)
    assert words in str(caught.value)


class Exploit:
    """A pickle that would create a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_pickle_that_wants_to_run_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    path, trace = tmp_path / "weights.pth", tmp_path / "ran"
    torch.save({"state_dict": Exploit(trace)}, path)
    with pytest.raises(SourceError, match="could run code") as caught:
        load_weights(net(), path)
    assert not trace.exists()
    assert "\n" not in str(caught.value)


def test_whole_pickled_module_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(net(), path)
    with pytest.raises(SourceError, match="state_dict"):
        load_weights(net(), path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("weights.pth", b"not a checkpoint", "weights.pth"),
        ("weights.safetensors", b"not safetensors", "not a whole safetensors file"),
        ("weights.bin", b"", "expected a file ending in"),
        ("weights.pth", b"", "weights.pth"),
    ],
)
def test_damaged_or_foreign_file_ends_in_one_line(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SourceError, match=words) as caught:
        load_weights(net(), path)
    assert "\n" not in str(caught.value)


def test_missing_file_and_dict_without_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file"):
        load_weights(net(), tmp_path / "none.pth")
    path = tmp_path / "epoch.pth"
    torch.save({"epoch": 3, "best": 0.9}, path)
    with pytest.raises(SourceError, match="a dict with epoch, best"):
        load_weights(net(), path)
