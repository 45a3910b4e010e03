"""`hf:PATH`: a model of text as `save_pretrained()` and sentence-transformers write it, read from its own directory and nowhere else."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ortserve.errors import SourceError
from ortserve.export.chatter import quiet
from ortserve.export.labels import matching, model_name, read_labels
from ortserve.export.loaded import Loaded
from ortserve.export.options import Options
from ortserve.export.tasks import BuildTask
from ortserve.export.tasks.feature_extraction import FeatureExtraction
from ortserve.export.tasks.text_classification import TextClassification
from ortserve.export.text import directory, to_onnx, tokenizer
from ortserve.export.text.module import Classifier, Embedder, TorchReference, input_names
from ortserve.manifest import Embedding, Source, Tokenization

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors")
CLASSIFIER = "ForSequenceClassification"


def load(options: Options) -> Loaded:
    """The model in that directory: an embedder, or a classifier where its architecture is one.

    Raises SourceError where it is not there, has no safe weights, wants code of its own, or does not fit the task.
    """
    _refuse_foreign(options)
    path = directory.checked(options.source)
    os.environ["HF_HUB_OFFLINE"] = "1"  # read by huggingface_hub when it is imported: nothing is asked of anybody
    config = _config(path)
    named = next(iter(config.architectures or []), "")
    task = options.task or ("text-classification" if named.endswith(CLASSIFIER) else "feature-extraction")
    if task not in ("feature-extraction", "text-classification"):
        raise SourceError(f"--task {task}: expected feature-extraction or text-classification for {options.source}")
    if task == "text-classification" and not named.endswith(CLASSIFIER):
        raise SourceError(
            f"--task text-classification: {path.name} holds a {named or 'model without a head'}, whose classes were never trained: "
            f"expected an architecture ...{CLASSIFIER}"
        )
    words, max_tokens = tokenizer.load(path, config, options.max_tokens)
    model = _model(path, config, classifier=task == "text-classification")
    names = input_names(model, config)
    inputs = partial(tokenizer.padded, words, names=names, max_tokens=max_tokens)
    module: Embedder | Classifier
    built: BuildTask
    facts: dict[str, Any] = {"tokenization": Tokenization(file=tokenizer.FILENAME, max_tokens=max_tokens)}
    if task == "text-classification":
        if config.num_labels < 2:
            raise SourceError(f"{path.name} answers one number for a text, no classes: expected 2 labels or more in its config.json")
        module = Classifier(model, names, exclusive=config.problem_type != "multi_label_classification")
        labels = read_labels(options.labels) or tuple(str(config.id2label[index]) for index in range(config.num_labels))
        facts["labels"] = matching(labels, config.num_labels)
        built = TextClassification(names, max_tokens, config.vocab_size, config.num_labels, inputs)
        note = f"{config.num_labels} classes"
    else:
        pooling, normalize = _pooling(options, path)
        module = Embedder(model, names, pooling, normalize=normalize)
        facts["embedding"] = Embedding(dimension=config.hidden_size, pooling=pooling, normalized=normalize)
        built = FeatureExtraction(names, max_tokens, config.vocab_size, config.hidden_size, inputs)
        note = f"{config.hidden_size} dimensions, {pooling} pooling, {'normalised' if normalize else 'not normalised'}"
    return Loaded(
        name=model_name(path.resolve().name),
        task=built,
        reference=TorchReference(module.eval()),
        graph=partial(to_onnx.export, module),
        simplify=partial(to_onnx.fuse, config=config),
        source=Source(
            kind="huggingface", reference=named or config.model_type, weights="its own", weights_sha256=directory.weights_sha256(path)
        ),
        packages=PACKAGES,
        facts=facts,
        files={tokenizer.FILENAME: tokenizer.written(words)},
        samples=built.own_samples() if isinstance(built, FeatureExtraction) else None,
        note=f"{note}, {max_tokens} tokens",
    )


def _refuse_foreign(options: Options) -> None:
    given = {
        "--weights": options.weights, "--input-size": options.input_size, "--mean": options.mean, "--std": options.std,
        "--resize-mode": options.resize_mode,
    }  # fmt: skip
    if wrong := [name for name, value in given.items() if value is not None]:
        raise SourceError(f"{options.source} brings its weights and takes text, no pictures: leave out {', '.join(wrong)}")


def _config(path: Path) -> Any:
    from transformers import AutoConfig

    try:
        with quiet():
            return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises anything
        raise SourceError(
            f"{path.name}/config.json is not one that transformers knows ({' '.join(str(error).split())[:160]}): "
            "code that a model brings itself is never run"
        ) from error


def _model(path: Path, config: Any, *, classifier: bool) -> torch.nn.Module:
    """The model in fp32 and evaluation mode, every weight of it out of the files."""
    from transformers import AutoModel, AutoModelForSequenceClassification

    kind = AutoModelForSequenceClassification if classifier else AutoModel
    try:
        with quiet():
            model, info = kind.from_pretrained(
                path,
                config=config,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except Exception as error:  # transformers and safetensors raise anything
        reason = " ".join(str(error).split())[:160]
        raise SourceError(f"{path.name} cannot be loaded ({type(error).__name__}: {reason}): copy the directory again") from error
    # An embedder's pooler is a layer that BERT was trained with and nobody reads here; many files have none.
    missing = sorted(key for key in info["missing_keys"] if classifier or not key.startswith("pooler."))
    if missing:
        raise SourceError(f"the weights of {path.name} lack {len(missing)} of the model's tensors ({missing[0]}, ...): copy it again")
    module: torch.nn.Module = model.eval().requires_grad_(False)
    return module


def _pooling(options: Options, path: Path) -> tuple[Any, bool]:
    """What the flags say, else sentence-transformers' files, else mean and normalised: what most embedders are trained with."""
    pooling, normalize = directory.pooling_of(path)
    chosen = options.pooling or pooling or "mean"
    if options.normalize is not None:
        return chosen, options.normalize
    return chosen, True if normalize is None else normalize
