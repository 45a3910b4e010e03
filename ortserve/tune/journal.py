"""What was measured so far, one JSON object a line: an interrupted search goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ortserve.errors import TuneError

Entry = dict[str, Any]


class Journal:
    """The entries of one search, in a file that only grows. `heading` says what was searched; another search cannot go on with it."""

    def __init__(self, path: Path, heading: Mapping[str, Any]) -> None:
        self._path = path
        self.entries = self._read()
        known = dict(json.loads(json.dumps(heading)))
        if not self.entries:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("", encoding="utf-8")
            self.add({"kind": "heading", **known})
        elif (was := {key: value for key, value in self.entries[0].items() if key != "kind"}) != known:
            other = next(key for key in [*known, *was] if known.get(key) != was.get(key))
            raise TuneError(
                f"{path} is of a search with {other} {was.get(other)!r}, this one has {known.get(other)!r}: "
                "go on with the same options, name another --output, or start over with --fresh"
            )

    def _read(self) -> list[Entry]:
        """The whole entries; a last line that was cut off by the interrupt is cut off the file as well."""
        if not self._path.exists():
            return []
        entries, whole = [], 0
        for line in self._path.read_bytes().splitlines(keepends=True):
            try:
                entries.append(json.loads(line))
            except ValueError:
                break
            if not line.endswith(b"\n"):
                entries.pop()
                break
            whole += len(line)
        with self._path.open("rb+") as file:
            file.truncate(whole)
        return entries

    def add(self, entry: Entry) -> None:
        """Write an entry, at once."""
        self.entries.append(entry)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def find(self, kind: str, **fields: Any) -> Entry | None:
        """The first entry of that kind with those fields."""
        wanted = {"kind": kind, **fields}.items()
        return next((entry for entry in self.entries if all(entry.get(key) == value for key, value in wanted)), None)

    @property
    def spent_s(self) -> float:
        """Seconds that its entries took."""
        return float(sum(entry.get("took_s", 0.0) for entry in self.entries))
