"""The models of BentoML's local store: those a start asks for, and those a bento has pinned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import bentoml
from bentoml import Tag
from bentoml.exceptions import BentoMLException, NotFound
from bentoml.models import BentoModel

from ortserve import startup
from ortserve.errors import ModelError
from ortserve.profile import Profile


def wanted_models(profile: Profile) -> list[BentoModel]:
    """The models to serve, as `startup.wanted_tags` has them. Raises ModelError where one is no tag."""
    models: list[BentoModel] = []
    for tag in startup.wanted_tags(profile):
        try:
            models.append(PackagedModel(tag))
        except (BentoMLException, ValueError) as error:
            raise ModelError(f"{tag!r} is no model tag: expected NAME or NAME:VERSION ({error})") from None
    return models


class PackagedModel(BentoModel):
    """A model of the local store; never looked for anywhere else."""

    def resolve(self, base_path: Any = None, *_: Any) -> Any:
        """The stored model. Exits with one line where the store does not have it: BentoML would ask its cloud."""
        if self.stored is None:
            with startup.exit_with_one_line():
                raise ModelError(
                    f"model {self.tag} is not in the BentoML store: expected a package made by `python build_model.py` or brought by "
                    f"`bentoml models import FILE`; `bentoml models list` shows what is there, {startup.MODEL_ENV} chooses"
                )
        return super().resolve(base_path) if base_path is not None else self.stored


def pinned(wanted: str, tags: Sequence[Tag]) -> Tag:
    """Which of a bento's own models NAME or NAME:VERSION means. Raises ModelError."""
    tag = next((tag for tag in tags if wanted in (str(tag), tag.name)), None)
    if tag is None:
        raise ModelError(
            f"model {wanted} is not in this bento: expected one of {', '.join(map(str, tags))}; choose with {startup.MODEL_ENV} or with "
            "the profile's models, or build a bento that holds it"
        )
    return tag


def stored(tag: Tag) -> Any:
    """The stored model that a bento has pinned. Raises ModelError."""
    try:
        return bentoml.models.get(tag)
    except NotFound:
        raise ModelError(
            f"model {tag}, pinned by this bento, is not in the BentoML store: import it with `bentoml models import FILE`"
        ) from None
