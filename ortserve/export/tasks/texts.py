"""What models of text have in common on the build side: their inputs, the probes, and samples read from files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ortserve.errors import CalibrationError
from ortserve.export.tasks import Advance, Probe, Samples, batches_up_to
from ortserve.manifest import TensorSpec
from ortserve.session import Tensors

Tokenise = Callable[[Sequence[str]], Tensors]

# Tokens of the probe that is run at every batch size: longer than most texts, short enough for batches of a thousand.
_TOKENS = 24


def input_specs(names: Sequence[str]) -> tuple[TensorSpec, ...]:
    """The graph's inputs, batch and sequence free."""
    return tuple(TensorSpec(name=name, dtype="int64", shape=("batch", "sequence")) for name in names)


def text_probes(names: Sequence[str], max_tokens: int, vocabulary: int, max_batch: int) -> list[Probe]:
    """Random tokens: rows of unlike length at every batch size, a row of the fewest tokens, and one of the most."""
    random = np.random.default_rng(0)
    length = min(_TOKENS, max_tokens)
    ragged = _rows(names, vocabulary, random.integers(2, length + 1, max_batch), length)
    return [
        Probe("random tokens", ragged, batches_up_to(max_batch)),
        Probe("2 tokens", _rows(names, vocabulary, [2], 2), (1,)),
        Probe(f"{max_tokens} tokens", _rows(names, vocabulary, [max_tokens], max_tokens), (1,)),
    ]


def _rows(names: Sequence[str], vocabulary: int, lengths: Sequence[int], width: int) -> Tensors:
    mask = (np.arange(width) < np.asarray(lengths)[:, None]).astype(np.int64)
    # From the middle of the vocabulary: special tokens stand at its ends.
    ids = np.random.default_rng(1).integers(vocabulary // 4, vocabulary * 3 // 4, mask.shape) * mask
    columns = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(mask)}
    return {name: columns[name] for name in names}


def read_texts(folder: Path, tokenise: Tokenise, advance: Advance) -> Samples:
    """Every line of the folder's .txt files that is not empty, tokenised. Raises CalibrationError where there is none."""
    if not folder.is_dir():
        raise CalibrationError(f"--calibration {folder}: no such folder: expected one with .txt files, a text in each line")
    files = sorted(folder.glob("*.txt"))
    lines: list[str] = []
    for index, file in enumerate(files, 1):
        try:
            lines += [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise CalibrationError(f"--calibration: {file.name} cannot be read ({error}): expected text in UTF-8") from error
        advance(index, len(files))
    if not lines:
        raise CalibrationError(f"--calibration {folder}: expected .txt files in it with a text in each line, got none")
    return Samples({}, tokenise(lines), f"{len(lines)} texts of {len(files)} files")
