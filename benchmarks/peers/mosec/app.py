"""Mosec. Two stages: a decoder for each CPU, then one runner with every CPU and batches of 4 at most: two runners of one thread each left
one idle while the other's batch was full (at 8 callers half the throughput)."""

from __future__ import annotations

from typing import Any

import numpy as np
import shared
from mosec import Server, Worker


class Decode(Worker):
    """Bytes to pixels."""

    def deserialize(self, data: bytes) -> bytes:
        """As they came."""
        return data

    def forward(self, data: bytes) -> Any:
        """Pixels."""
        return shared.pixels(data)


class Classify(Worker):
    """Pixels to classes, many at once."""

    def __init__(self) -> None:
        super().__init__()
        self.model = shared.model(batches=(1, 4))

    def forward(self, data: list[Any]) -> list[Any]:
        """The best classes of each."""
        return [shared.answer(row) for row in self.model(np.stack(data))]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Decode, num=shared.CPUS)
    server.append_worker(Classify, num=1, max_batch_size=4, max_wait_time=1, timeout=60)
    server.run()
