"""The tokenizer of a Hugging Face directory as the service wants it: one JSON file that neither truncates nor pads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, normalizers

from ortserve.errors import SourceError
from ortserve.export.chatter import quiet
from ortserve.export.text.directory import read_json
from ortserve.session import Tensors

FILENAME = "tokenizer.json"
# Beyond this a "model_max_length" means "none": transformers writes 1e30.
_NO_LIMIT = 1_000_000


def load(path: Path, config: Any, asked: int | None) -> tuple[Tokenizer, int]:
    """The tokenizer and how many tokens the model takes at most, special ones included; `asked` is --max-tokens.

    A slow tokenizer is converted by transformers. Raises SourceError where there is none, or the model has no such length.
    """
    from transformers import AutoTokenizer

    try:
        with quiet():
            loaded = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
            tokenizer = Tokenizer.from_str(loaded.backend_tokenizer.to_str())
    except Exception as error:  # transformers and tokenizers raise anything
        reason = " ".join(str(error).split())[:160]
        raise SourceError(
            f"{path.name} has no tokenizer that can be read ({reason}): expected tokenizer.json beside config.json"
        ) from error
    if read_json(path / "sentence_bert_config.json").get("do_lower_case"):  # sentence-transformers lowers before it tokenises
        steps = [normalizers.Lowercase(), *([tokenizer.normalizer] if tokenizer.normalizer else [])]
        tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    own = min(_own_limits(path, config, loaded.model_max_length))
    if asked is not None and asked > own:
        raise SourceError(f"expected --max-tokens of at most {own}, which is the model's own limit, got {asked}")
    shortest = tokenizer.num_special_tokens_to_add(False) + 1
    if (limit := asked or own) < shortest:
        raise SourceError(f"expected --max-tokens of at least {shortest}, the special tokens and one more, got {limit}")
    return tokenizer, limit


def _own_limits(path: Path, config: Any, model_max_length: Any) -> list[int]:
    """What the files say of the longest text, in tokens."""
    limits = []
    positions = getattr(config, "max_position_embeddings", None)
    if positions:
        # RoBERTa and its kin count positions from the padding token's id + 1 on.
        shifted = config.model_type in ("camembert", "mpnet", "roberta", "xlm-roberta")
        limits.append(positions - ((config.pad_token_id or 0) + 1 if shifted else 0))
    if isinstance(model_max_length, int | float) and model_max_length < _NO_LIMIT:
        limits.append(int(model_max_length))
    if trained := read_json(path / "sentence_bert_config.json").get("max_seq_length"):
        limits.append(int(trained))
    if not limits:
        raise SourceError(f"{path.name} does not say how many tokens its model takes: give --max-tokens")
    return limits


def padded(tokenizer: Tokenizer, texts: Sequence[str], names: Sequence[str], max_tokens: int) -> Tensors:
    """The texts as the graph's inputs, each cut to `max_tokens`, all padded to the longest with zeros."""
    cutting = Tokenizer.from_str(tokenizer.to_str())
    cutting.enable_truncation(max_tokens)
    encodings = cutting.encode_batch(list(texts))
    longest = max(len(encoding) for encoding in encodings)
    tensors = {name: np.zeros((len(encodings), longest), np.int64) for name in names}
    for row, encoding in enumerate(encodings):
        columns = {"input_ids": encoding.ids, "attention_mask": encoding.attention_mask, "token_type_ids": encoding.type_ids}
        for name in names:
            tensors[name][row, : len(encoding)] = columns[name]
    return tensors


def written(tokenizer: Tokenizer) -> bytes:
    """The file of the package: the same JSON whatever machine wrote it."""
    return (json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, separators=(",", ":")) + "\n").encode()
