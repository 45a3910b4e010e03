"""The C for pixels: compiled here and used, and where it cannot be Pillow does the same, and the log says why."""

from __future__ import annotations

import io
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ortserve import compile, compiled, images, jpeg, resample
from ortserve.manifest import Preprocessing
from ortserve.profile import Limits

HOW = Preprocessing(mode="crop", height=25, width=20, resize_size=30, mean=(0, 0, 0), std=(1, 1, 1))


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the source alone, which this test compiles and loads."""
    folder = tmp_path / "native"
    shutil.copytree(compiled.FOLDER, folder, ignore=shutil.ignore_patterns("_pixels*"))
    monkeypatch.setattr(compiled, "FOLDER", folder)
    jpeg._opened.cache_clear()
    resample._opened.cache_clear()
    yield folder
    jpeg._opened.cache_clear()
    resample._opened.cache_clear()


def pixels_are_pillows() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 50, 3), dtype=np.uint8)
    for format in ("JPEG", "PNG"):
        file = io.BytesIO()
        Image.fromarray(noise).save(file, format)
        picture = Image.open(file)
        expected = picture.resize((30, 36), Image.Resampling.BILINEAR).crop((5, 6, 25, 31))
        assert np.array_equal(images.load(file.getvalue(), HOW, Limits(), decoder="exact"), np.asarray(expected))


def ways() -> tuple[str, str]:
    return jpeg.way().name, resample.way().name


def test_what_is_compiled_is_used(sources: Path, caplog: pytest.LogCaptureFixture) -> None:
    stale = sources / compiled.compiled_file().name.replace(compiled._fingerprint(), "0123456789ab")
    stale.write_bytes(b"")
    path = compiled.compile_here()
    assert [file.name for file in sources.glob("_pixels*")] == [path.name]  # the stale one is gone, and nothing unfinished is left
    with caplog.at_level(logging.INFO, "ortserve"):
        assert jpeg.way() == ("compiled", path.name)
        assert resample.way() == ("compiled", path.name)
    assert caplog.messages == [f"JPEGs are decoded by {path.name}", f"pictures are resized by {path.name}"]
    pixels_are_pillows()


@pytest.mark.parametrize("name", ["jpeg.c", "resample_passes.h", "pixels.h", "libjpeg/jconfig.h"])
def test_another_source_has_another_name(sources: Path, name: str) -> None:
    before = compiled.compiled_file()
    with (sources / name).open("a", encoding="utf-8") as source:
        source.write("\n")
    assert compiled.compiled_file() != before


@pytest.mark.usefixtures("sources")
def test_without_one_it_is_pillow_and_the_log_says_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "ortserve"):
        assert ways() == ("pillow", "pillow")
    for message in caplog.messages:
        assert "Pillow, same pixels but slower: there is no _pixels-" in message
        assert "python -m ortserve.compile" in message
    pixels_are_pillows()


@pytest.mark.usefixtures("sources")
@pytest.mark.parametrize("what", ["rubbish", "another library", "another machine"])
def test_a_file_that_cannot_be_used_is_said_and_it_is_pillow(what: str, caplog: pytest.LogCaptureFixture) -> None:
    path = compiled.compiled_file()
    if what == "rubbish":
        path.write_bytes(b"\x7fELF rubbish")
    elif what == "another library":
        from PIL import _imagingmath  # any shared library without our functions

        shutil.copy(_imagingmath.__file__, path)
    else:
        content = bytearray(compiled.compile_here().read_bytes())
        content[18:20] = b"\x15\x00"  # ELF's e_machine: PowerPC
        path.unlink()
        path.write_bytes(content)
    with caplog.at_level(logging.INFO, "ortserve"):
        assert ways() == ("pillow", "pillow")
    assert caplog.text.count(f"{path.name} cannot be used") == 2
    pixels_are_pillows()


@pytest.mark.parametrize(
    ("name", "ours", "another", "found"),
    [
        # before Pillow 13 no picture went down first
        ("resample.c", "(from_width - to_width) * 2", "(from_width - to_width) * 200", ("pillow", "pillow")),
        ("resample.c", "#define a -0.5", "#define a -0.75", ("compiled", "pillow")),  # other libraries' bicubic
        ("resample.c", "(32 - 8 - 2)", "(16 - 2)", ("pillow", "pillow")),  # fewer bits, as pillow-simd had
        ("resample.c", "{lanczos, 3.0}", "{lanczos, 2.0}", ("compiled", "pillow")),
        (
            "jpeg.c",
            "start_decompress(reading);",
            "start_decompress((reading->do_fancy_upsampling = FALSE, reading));",
            ("pillow", "compiled"),
        ),
        ("jpeg.c", "#define MARGIN 8", "#define MARGIN 0", ("pillow", "compiled")),
        ("resample.c", "[6] = {1, 0, 1}", "[6] = {1, 1, 0}", ("pillow", "compiled")),
    ],
)
def test_other_pixels_than_pillows_are_noticed(
    sources: Path, name: str, ours: str, another: str, found: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    before = (sources / name).read_text(encoding="utf-8")
    assert before.count(ours) == 1
    (sources / name).write_text(before.replace(ours, another), encoding="utf-8")
    path = compiled.compile_here()
    with caplog.at_level(logging.INFO, "ortserve"):
        assert ways() == found
    assert caplog.text.count(f"has other pixels than {path.name}") == found.count("pillow") * 2
    assert [record.levelname for record in caplog.records].count("WARNING") == found.count("pillow")
    pixels_are_pillows()


def test_a_pillow_without_its_libjpeg_decodes_by_itself(sources: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = sources / "jpeg.c"
    source.write_text(source.read_text(encoding="utf-8").replace('"jpeg_" #name);', '"jpeg_none_" #name);'), encoding="utf-8")
    compiled.compile_here()
    with caplog.at_level(logging.INFO, "ortserve"):
        assert ways() == ("pillow", "compiled")
    assert "stands on no libjpeg-turbo that can be called (jpeg_std_error): install Pillow's own wheel" in caplog.text
    pixels_are_pillows()


def test_another_abi_than_pillows_libjpeg_has_is_noticed(sources: Path, caplog: pytest.LogCaptureFixture) -> None:
    header = sources / "libjpeg" / "jconfig.h"
    header.write_text(header.read_text(encoding="utf-8").replace("JPEG_LIB_VERSION 62", "JPEG_LIB_VERSION 80"), encoding="utf-8")
    compiled.compile_here()
    with caplog.at_level(logging.INFO, "ortserve"):
        assert ways() == ("pillow", "compiled")
    assert "declines what Pillow wrote, as one of another ABI does" in caplog.text
    pixels_are_pillows()


@pytest.mark.usefixtures("sources")
def test_no_compiler_is_no_failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "")
    compile.main()
    said = capsys.readouterr().out
    assert "Pillow decodes and resizes" in said
    assert "there is no C compiler here; install gcc" in said


def test_a_compiler_that_fails_is_quoted(sources: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (sources / "resample.c").write_text("int broken(", encoding="utf-8")
    compile.main()
    said = capsys.readouterr().out
    assert "Pillow decodes and resizes" in said
    assert "cannot compile native/" in said
    assert not [*sources.glob("_pixels*")]
