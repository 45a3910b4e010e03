"""An empty BentoML service: what BentoML itself costs in memory and in time to ready."""

from __future__ import annotations

import bentoml


@bentoml.service(name="empty")
class Empty:
    """Does nothing."""

    @bentoml.api
    def echo(self, text: str) -> str:
        """The text."""
        return text
