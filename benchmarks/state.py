"""Half a bench: every finished point is a line of a file, so that an interrupted run goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Point = dict[str, Any]


class State:
    """The points so far of a bench with these settings. A file of other settings is put aside, not continued."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self.points: list[Point] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            lines = _whole_lines(path)
            if lines and lines[0] == {"settings": settings}:
                self.points = lines[1:]
                path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")  # without a half-written end
                return
            path.replace(path.with_suffix(".other.jsonl"))
        self._append({"settings": settings})

    def add(self, session: str, load: str, **figures: Any) -> Point:
        """One more point, on disk when this comes back."""
        point = {"session": session, "load": load, **figures}
        self._append(point)
        self.points.append(point)
        return point

    def of(self, session: str) -> dict[str, Point]:
        """What there is of a session, by load."""
        return {point["load"]: point for point in self.points if point["session"] == session}

    def finish(self) -> None:
        """The bench is over: the next one begins anew."""
        self.path.replace(self.path.with_suffix(".done.jsonl"))

    def _append(self, line: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break  # the run ended while it wrote this one
    return lines
