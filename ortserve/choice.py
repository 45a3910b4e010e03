"""Which of the served models answers a request: by its path where only one has it, else by the name that the request gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ortserve.errors import InvalidParameter
from ortserve.model import ServedModel
from ortserve.tasks.endpoint import Endpoint, Files, Json


@dataclass(frozen=True, slots=True)
class Offer:
    """A model that answers an endpoint."""

    served: ServedModel
    endpoint: Endpoint


class Choice:
    """The models that answer one path. They are of one task, so that their requests are read alike and only checked apart."""

    def __init__(self, offers: Iterable[Offer]) -> None:
        """At least one, in the order in which they are served."""
        self._offers = {offer.served.name: offer for offer in offers}
        first = next(iter(self._offers.values()))
        self.path = first.endpoint.path
        self.takes: Files | Json = first.endpoint.takes
        self._only = first.served if len(self._offers) == 1 else None

    def gate(self, _: Mapping[str, str]) -> ServedModel | None:
        """Who says whether there is a place, where it is known already which model is asked."""
        return self._only

    def came(self) -> None:
        """As `ServedModel.came`."""
        if self._only is not None:
            self._only.came()

    def expect_room(self) -> None:
        """As `ServedModel.expect_room`, where it is known already which model is asked."""
        if self._only is not None:
            self._only.expect_room()

    def of(self, wanted: str | None) -> Offer:
        """The model that NAME or NAME:VERSION means, or the only one. Raises InvalidParameter, naming those there are."""
        if wanted is None:
            if len(self._offers) == 1:
                return next(iter(self._offers.values()))
            raise InvalidParameter(f"model: expected one of {self._names()}, got none: {self.path} has several models to choose from")
        name, _, version = wanted.partition(":")
        offer = self._offers.get(name)
        if offer is None or version not in ("", offer.served.version):
            raise InvalidParameter(
                f"model: expected {'' if len(self._offers) == 1 else 'one of '}{self._names()}, which {self.path} has here"
            )
        return offer

    def _names(self) -> str:
        return ", ".join(repr(name) for name in self._offers)


def choices(models: Iterable[ServedModel]) -> dict[str, Choice]:
    """For each path that any of the models answers, which of them do."""
    offers: dict[str, list[Offer]] = {}
    for served in models:
        for endpoint in served.task.endpoints:
            offers.setdefault(endpoint.path, []).append(Offer(served, endpoint))
    return {path: Choice(offered) for path, offered in offers.items()}
