"""A table of paths: what was put under a template is found by a path, with what stood in place of each {name}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

T = TypeVar("T")

_NO_VALUES: Mapping[str, str] = {}


class Paths(Generic[T]):
    """Templates like `/models/{name}/ready`. A {name} stands for one segment that is not empty; a literal segment goes before it."""

    def __init__(self) -> None:
        self._exact: dict[str, T] = {}
        self._root: _Node[T] = _Node()

    def put(self, template: str, entry: T) -> T:
        """What stands under that template: `entry` where there was nothing yet."""
        if "{" not in template:
            return self._exact.setdefault(template, entry)
        node = self._root
        for segment in template.split("/"):
            node = node.child(segment)
        if node.entry is None:
            node.entry = entry
        return node.entry

    def find(self, path: str) -> tuple[T | None, Mapping[str, str]]:
        """What stands under the template that the path fits, and the values of its names; (None, {}) where there is none."""
        entry = self._exact.get(path)
        if entry is not None:
            return entry, _NO_VALUES
        node = self._root
        values: dict[str, str] = {}
        for segment in path.split("/"):
            following = node.literals.get(segment)
            if following is None and segment:
                values[node.name] = segment
                following = node.named
            if following is None:
                return None, _NO_VALUES
            node = following
        return (None, _NO_VALUES) if node.entry is None else (node.entry, values)


class _Node(Generic[T]):
    def __init__(self) -> None:
        self.entry: T | None = None
        self.literals: dict[str, _Node[T]] = {}
        self.name = ""
        self.named: _Node[T] | None = None

    def child(self, segment: str) -> _Node[T]:
        """The node of a template's next segment, made where there is none."""
        if not segment.startswith("{"):
            return self.literals.setdefault(segment, _Node())
        name = segment.strip("{}")
        assert self.name in ("", name), f"{{{self.name}}} and {{{name}}} stand at the same place of two templates"
        self.name = name
        if self.named is None:
            self.named = _Node()
        return self.named
