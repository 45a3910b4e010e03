"""Texts to token ids, by the `tokenizers` library and the package's own file; what requests of texts have in common."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import BeforeValidator, ConfigDict, Field
from tokenizers import Tokenizer

from ortserve.errors import InvalidParameter, ModelError, PayloadTooLarge
from ortserve.tasks.endpoint import JsonRequest
from ortserve.tasks.row import Row

if TYPE_CHECKING:
    from ortserve.manifest import Manifest
    from ortserve.profile import Profile

# How many texts share one hop to a worker thread: one takes 20 us there, the hop 100.
TEXTS_PER_JOB = 32

_COLUMNS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}  # by tokenizers' name of each


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


OneOrMany = Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)]


class TextRequest(JsonRequest):
    """One text or many. Strict: 1 is no text, and no true either."""

    model_config = ConfigDict(strict=True)

    inputs: OneOrMany
    truncate: bool = False  # whether a text longer than the model takes is cut; else it is refused

    def payloads(self) -> Sequence[str]:
        """The texts."""
        return self.inputs


class Texts:
    """Makes rows of texts for one model. Keeps no state of a request: called from many threads at once."""

    def __init__(self, manifest: Manifest, folder: Path, profile: Profile) -> None:
        """Raises ModelError where the package has no tokenizer, or the model's inputs are not those of tokens."""
        how = manifest.tokenization
        if how is None:
            raise ModelError(
                f"model {manifest.name} is for {manifest.task}: expected how texts become tokens in its manifest; build it again"
            )
        self._names = tuple(spec.name for spec in manifest.inputs)
        wrong = [spec for spec in manifest.inputs if spec.name not in _COLUMNS or spec.dtype != "int64" or len(spec.shape) != 2]
        if wrong or not {"input_ids", "attention_mask"} <= set(self._names):
            raise ModelError(
                f"model {manifest.name} is for {manifest.task}: expected the inputs input_ids, attention_mask and perhaps token_type_ids, "
                f"int64[batch,sequence], got {', '.join(f'{spec.name} {spec.dtype}{list(spec.shape)}' for spec in manifest.inputs)}; "
                "build it again"
            )
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the threads are ours: a pool of the library's own would fight them for the CPUs
        path = manifest.verified_file(folder, how.file)
        try:
            self._whole, self._cutting = Tokenizer.from_file(str(path)), Tokenizer.from_file(str(path))
        except Exception as error:  # the binding raises bare exceptions
            raise ModelError(
                f"model {manifest.name}: {how.file} cannot be read by this version of tokenizers ({' '.join(str(error).split())[:120]}): "
                "build it again"
            ) from error
        for tokenizer in (self._whole, self._cutting):
            tokenizer.no_padding()
        self._whole.no_truncation()
        self._cutting.enable_truncation(how.max_tokens)
        # What a sender of tensors may put into each input: 0 to below this. An id beyond would fail in the model, with its whole batch.
        self.bounds = {name: self._whole.get_vocab_size() if name == "input_ids" else 2 for name in self._names}
        self._max_tokens = how.max_tokens
        self._max_chars = profile.limits.max_text_chars

    def row(self, text: str, *, truncate: bool) -> Row:
        """The text's tokens; the row's context is how many there are. A text is never padded here.

        Raises InvalidParameter for a text that is empty, holds NUL, or is longer than the model takes and not to be cut; PayloadTooLarge
        before a text of too many characters is looked at.
        """
        if len(text) > self._max_chars:
            raise PayloadTooLarge(f"expected a text of at most {self._max_chars} characters, got {len(text)}: send a part of it")
        if not text or text.isspace():
            raise InvalidParameter("expected a text, got an empty one: leave it out")
        if "\0" in text:
            raise InvalidParameter("expected a text, got a NUL character in it: send text, not the bytes of a file")
        tokenizer = self._cutting if truncate else self._whole
        # Not `encode`: it holds the interpreter's lock all the while, and counts the characters of every token besides.
        [encoding] = tokenizer.encode_batch_fast([text])
        tokens = len(encoding)
        if tokens > self._max_tokens:
            raise InvalidParameter(
                f"expected a text of at most {self._max_tokens} tokens, got {tokens}: shorten it, or send truncate: true to cut its end"
            )
        return Row({name: np.array([getattr(encoding, _COLUMNS[name])], np.int64) for name in self._names}, context=tokens)
