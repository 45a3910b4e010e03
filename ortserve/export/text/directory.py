"""The small files of a Hugging Face directory, and what sentence-transformers wrote beside them: how tokens become one vector."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any, get_args

from ortserve.errors import SourceError
from ortserve.export.options import Pooling
from ortserve.manifest import sha256_of

SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
# What sentence-transformers called its pooling before version 6, one switch for each.
_SWITCHES: dict[str, str] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


def checked(text: str) -> Path:
    """The directory that `hf:PATH` names. Raises SourceError where it is not one with a config and weights that can be read safely."""
    path = Path(text.removeprefix("hf:")).expanduser()
    if not path.is_dir():
        raise SourceError(f"SOURCE {text}: no such directory: expected hf:PATH of a model's own directory, as save_pretrained() writes it")
    if not (path / "config.json").is_file():
        raise SourceError(f"SOURCE {text}: there is no config.json in it: expected a directory that save_pretrained() wrote")
    if not any((path / name).is_file() for name in SAFETENSORS):
        pickled = sorted(file.name for file in (*path.glob("*.bin"), *path.glob("*.pt"), *path.glob("*.pth")))
        has = f"only {pickled[0]}, which could run code of its maker" if pickled else "no weights"
        raise SourceError(
            f"SOURCE {text}: expected {SAFETENSORS[0]}, got {has}: where it was made, write it again with "
            "model.save_pretrained(PATH, safe_serialization=True)"
        )
    return path


def weights_sha256(path: Path) -> str:
    """The sha256 of the weights' file; of the list of them where there are several."""
    return sha256_of(next(path / name for name in SAFETENSORS if (path / name).is_file()))


def read_json(path: Path) -> dict[str, Any]:
    """The object in that file; {} where there is no such file. Raises SourceError where it holds something else."""
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise SourceError(f"{path.name} cannot be read as JSON ({error}): copy the directory again") from error
    if not isinstance(data, dict):
        raise SourceError(f"{path.name}: expected a JSON object, got {type(data).__name__}: copy the directory again")
    return data


def pooling_of(path: Path) -> tuple[Pooling | None, bool | None]:
    """How sentence-transformers pools and whether it normalises, by `modules.json`; (None, None) where the directory does not say.

    Raises SourceError for a step that is neither, or a way of pooling that is not known here.
    """
    file = path / "modules.json"
    if not file.is_file():
        return None, None
    pooling: Pooling | None = None
    normalize = False
    for module in _modules(file):
        kind = module["type"].rpartition(".")[2]
        if kind == "Normalize":
            normalize = True
        elif kind == "Pooling":
            pooling = _pooling(path / _inside(module["path"]) / "config.json")
        elif kind != "Transformer":
            raise SourceError(f"modules.json has a step {kind}: expected Transformer, Pooling and Normalize alone; no other is exported")
    return pooling, normalize


def _modules(file: Path) -> list[dict[str, str]]:
    try:
        modules = json.loads(file.read_bytes())
        return [{"type": str(module["type"]), "path": str(module.get("path", ""))} for module in modules]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(
            f"modules.json is not as sentence-transformers writes it ({type(error).__name__}): copy the directory again"
        ) from error


def _inside(text: str) -> PurePosixPath:
    """A relative path that stays inside the directory."""
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts:
        raise SourceError(f"modules.json names {text!r}: expected a folder inside the directory; copy the directory again")
    return path


def _pooling(file: Path) -> Pooling:
    config = read_json(file)
    named = config.get("pooling_mode", [name for switch, name in _SWITCHES.items() if config.get(switch)])
    modes = [named] if isinstance(named, str) else list(named)
    if len(modes) != 1 or modes[0] not in get_args(Pooling):
        raise SourceError(
            f"{file.parent.name} pools by {' and '.join(map(str, modes)) or 'nothing'}: expected one of {', '.join(get_args(Pooling))}"
        )
    pooling: Pooling = modes[0]
    return pooling
