"""What the bench's systems serve is built once, and again when what builds it has changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import models, places


def test_a_package_is_built_again_where_the_exporter_or_its_arguments_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[tuple[str, ...]] = []

    def build(*command: object) -> None:
        built.append(tuple(map(str, command)))
        folder = tmp_path / "work" / "bentoml" / "models" / "net"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "latest").write_text(f"v{len(built)}", encoding="utf-8")

    exporter = tmp_path / "ortserve" / "export" / "tasks"
    exporter.mkdir(parents=True)
    (exporter / "int8.py").write_text("eight", encoding="utf-8")
    monkeypatch.setattr(places, "ROOT", tmp_path)
    for name, value in (("WORK", tmp_path / "work"), ("HOME", tmp_path / "work" / "bentoml"), ("_run", build)):
        monkeypatch.setattr(models, name, value)

    def version(*arguments: str) -> str:
        return models._built("net", "net.py:build", tmp_path / "net.pth", *arguments).folder.name

    assert (version(), version()) == ("v1", "v1")
    (exporter / "int8.py").write_text("seven", encoding="utf-8")
    assert (version(), version()) == ("v2", "v2")
    assert version("--max-batch", "4") == "v3"
    (tmp_path / "work" / "bentoml" / "models" / "net" / "latest").unlink()
    assert version("--max-batch", "4") == "v4"
    assert built[-1] == ("build_model.py", "net.py:build", "--name", "net", "--max-batch", "4")
