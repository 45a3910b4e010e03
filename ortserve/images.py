"""Hostile bytes to `uint8` pixels. In worker threads; `small_jpeg`, and what is `tiny`, in any. No HTTP, no state, nothing is written.

What a picture becomes, whatever it was: RGB, 8 bits, upright.

- EXIF orientation is applied. ICC profiles are ignored, as torchvision does: models were trained on pictures read so.
- Transparency is laid over white: what lies under transparent pixels is arbitrary (often black); white is what a page shows there.
- 16 bits become 8 by dropping the lower byte (`>> 8`), for grey as Pillow does it for colour.
- CMYK and YCCK become RGB by Pillow's plain formula `(255 - ink) * (255 - black) / 255`; JPEG's CMYK is inverted, as Adobe writes it.
- Of an animation the first frame is read; of an APNG its default picture.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from ortserve import jpeg
from ortserve.errors import ImageTooLarge, InvalidImage, RequestError
from ortserve.image_headers import Header, ImageFormat, TakesLong, inspect, png_size
from ortserve.jpeg import UPRIGHT
from ortserve.manifest import Preprocessing
from ortserve.placement import RESAMPLING, lay, on_canvas, place
from ortserve.profile import Limits
from ortserve.resample import FILTERED, Box, bordered, resized

MEDIA_TYPES: frozenset[str] = frozenset(
    {"image/jpeg", "image/jpg", "image/pjpeg", "image/png", "image/apng", "image/webp", "image/bmp", "image/x-ms-bmp", "image/gif"}
)
# The crop of a longer picture would show less than a hundredth of it, and Pillow would resize all of it.
MAX_ASPECT = 100

# So many an event loop may copy, so many are decoded in some 5 ms, for which whoever is behind has to wait.
SMALL_BYTES = 262_144
SMALL_PIXELS = 1_500_000

# So little is decoded and resized in some tenths of a millisecond: sooner than a thread has been asked that wants the interpreter, too. Of
# 160 x 160 pixels that was hardly so any more, of 256 x 256 no longer. No side that is short: the longer one would be resized to more.
TINY_BYTES = 16_384
TINY_SIDES = range(16, 129)
TINY_INPUT_SIDE = 256

# Ours is checked from the header before Pillow is asked; its own would warn, or refuse what a profile allows.
Image.MAX_IMAGE_PIXELS = None
# The classes and not Image.open: that one guesses, warns, and turns some JPEGs into other types.
_OPEN: dict[ImageFormat, type[ImageFile]] = {
    "jpeg": JpegImageFile,
    "png": PngImageFile,
    "webp": WebPImageFile,
    "bmp": BmpImageFile,
    "gif": GifImageFile,
}


@dataclass(frozen=True, slots=True)
class Framing:
    """A picture resized to `size` (width, height), of that the `box`, black outside the picture, at `corner` (left, top) of the input."""

    size: tuple[int, int]
    box: Box
    corner: tuple[int, int] = (0, 0)


def load(
    data: bytes | bytearray | memoryview, how: Preprocessing, limits: Limits, *, decoder: Literal["exact", "draft"]
) -> NDArray[np.uint8]:
    """The picture in `data` as `uint8[height, width, 3]`, C-contiguous and read-only: what `preprocess` makes of `decode`'s.

    Of a JPEG only what `how` shows is decoded, with the same pixels. `decoder="draft"` lets it shrink while it is decoded, never below the
    size that `how` needs: faster, and other pixels.
    Raises as `decode` and `preprocess`.
    """
    return load_with_size(data, how, limits, decoder=decoder)[1]


def load_with_size(
    data: bytes | bytearray | memoryview, how: Preprocessing, limits: Limits, *, decoder: Literal["exact", "draft"]
) -> tuple[tuple[int, int], NDArray[np.uint8]]:
    """The upright picture's own (width, height), and what `load` gives. Raises as `load`."""
    draft_size = None
    if decoder == "draft":
        draft_size = (how.resize_size or how.width, how.resize_size or how.height)
    with _only_invalid_image():
        header = inspect(data, limits)
        part = _part(header, how) if draft_size is None else None
    if part is not None and (pixels := jpeg.resized(part.job)) is not None:
        return header.upright_size, part.finished(pixels)
    with _only_invalid_image():
        image = _decoded(header, draft_size)
    return header.upright_size, preprocess(image, how)


def jpeg_way(how: Preprocessing, decoder: Literal["exact", "draft"]) -> Literal["compiled", "pillow"]:
    """Which of the two decodes the JPEGs that `load` is given."""
    ours = decoder == "exact" and how.antialias and RESAMPLING[how.interpolation] in FILTERED
    return jpeg.way().name if ours else "pillow"


@dataclass(frozen=True, slots=True)
class Part:
    """What of a JPEG is shown: the job that gives its pixels, and what becomes of them."""

    job: jpeg.Job
    framing: Framing
    how: Preprocessing

    def finished(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """What `load` gives, of the job's pixels."""
        return on_canvas(bordered(pixels, self.job.within, self.framing.box), self.framing.corner, self.how)


def small_jpeg(data: bytes | bytearray | memoryview, how: Preprocessing, limits: Limits) -> Part | None:
    """What `load` would have decoded of a JPEG that is soon walked through and soon decoded; None: have `load` do it.

    Raises as `load` for what its header says.
    """
    if memoryview(data).nbytes > SMALL_BYTES:
        return None
    try:
        with _only_invalid_image():
            header = inspect(data, limits, quick=True)
            return _part(header, how) if header.bounded and header.size[0] * header.size[1] <= SMALL_PIXELS else None
    except TakesLong:
        return None


def tiny(data: bytes | bytearray | memoryview, how: Preprocessing) -> bool:
    """Whether `load` is over in a moment, well or not: by its first bytes a tiny PNG, for an input that is not large."""
    if memoryview(data).nbytes > TINY_BYTES or max(how.height, how.width, how.resize_size or 0) > TINY_INPUT_SIDE:
        return False
    size = png_size(data)
    return size is not None and size[0] in TINY_SIDES and size[1] in TINY_SIDES


def _part(header: Header, how: Preprocessing) -> Part | None:
    """None: Pillow decodes it."""
    if header.format != "jpeg" or not how.antialias:
        return None
    framing = frame(header.upright_size, how)
    job = jpeg.job(header.data, header.orientation, header.upright_size, framing.size, framing.box, RESAMPLING[how.interpolation])
    return None if job is None else Part(job, framing, how)


def decode(data: bytes | bytearray | memoryview, limits: Limits, *, draft_size: tuple[int, int] | None = None) -> Image.Image:
    """The picture in `data`: mode RGB, upright, all of it read.

    With `draft_size` (width, height; upright) a JPEG is decoded at the smallest of 1/1, 1/2, 1/4, 1/8 of its size that is no smaller
    than that (libjpeg's scaling in the DCT domain). Raises PayloadTooLarge, ImageTooLarge, UnsupportedMediaType before anything is
    decoded, InvalidImage for what is no whole picture.
    """
    with _only_invalid_image():
        return _decoded(inspect(data, limits), draft_size)


def upright_size(data: bytes | bytearray | memoryview, limits: Limits) -> tuple[int, int]:
    """(width, height) of the picture in `data` as `decode` would give it, from its header alone. Raises as `decode`."""
    with _only_invalid_image():
        return inspect(data, limits).upright_size


@contextmanager
def _only_invalid_image() -> Iterator[None]:
    """Pillow's plugins raise whatever the rubbish made their parsing stumble over; MemoryError too."""
    try:
        yield
    except (RequestError, TakesLong):
        raise
    except Exception as error:
        raise InvalidImage("the bytes are damaged or not a picture: send a whole JPEG, PNG, WebP, BMP or GIF") from error


def _decoded(header: Header, draft_size: tuple[int, int] | None) -> Image.Image:
    picture = _OPEN[header.format](io.BytesIO(header.data))
    if picture.size != header.size:
        raise InvalidImage("the picture's header contradicts itself: send a whole JPEG, PNG, WebP, BMP or GIF")
    if draft_size is not None:
        # Orientations 5 to 8 lie on their side.
        picture.draft(None, draft_size[::-1] if header.orientation >= 5 else draft_size)
    picture.load()
    if header.format == "png" and picture.mode in ("L", "RGB") and "transparency" in picture.info:
        picture.info["transparency"] = _eight_bits(picture.info["transparency"], depth=header.data[24])
    image = _rgb(picture)
    return image.transpose(UPRIGHT[header.orientation]) if header.orientation in UPRIGHT else image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I;16":
        return _rgb16(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        with_alpha = image.convert("RGBA")
        flat = Image.new("RGB", image.size, (255, 255, 255))
        flat.paste(with_alpha, mask=with_alpha)
        return flat
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(key: int | tuple[int, ...], depth: int) -> int | tuple[int, ...]:
    """A PNG's transparent grey or colour in the 8 bits of the pixels: Pillow spreads or narrows the pixels and leaves the key as it was."""
    if isinstance(key, tuple):
        return tuple(value >> depth - 8 for value in key)
    return (key & (1 << depth) - 1) * 255 // ((1 << depth) - 1)


def _rgb16(image: Image.Image) -> Image.Image:
    grey = np.asarray(image)
    picture = Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")
    if (transparent := image.info.get("transparency")) is not None:
        picture.paste((255, 255, 255), mask=Image.fromarray(grey == transparent))
    return picture


def preprocess(image: Image.Image, how: Preprocessing) -> NDArray[np.uint8]:
    """An RGB picture as `uint8[height, width, 3]`, C-contiguous and read-only; the pixels are those of torchvision on PIL pictures.

    crop: `resize(image, resize_size)` then `center_crop(image, [height, width])`, with its roundings and its black border where the
    picture is smaller than the crop. stretch: `resize(image, [height, width])`, or to a square of `resize_size` and then `center_crop`.
    pad: `PIL.ImageOps.pad` with `pad_value`, except that a side never vanishes. letterbox, and stretch without antialiasing: see
    `ortserve.placement`. Raises ImageTooLarge for a crop of a picture whose sides differ more than `MAX_ASPECT` times.
    """
    if not how.antialias:
        return lay(image, place(image.size, how), how)
    framing = frame(image.size, how)
    return on_canvas(resized(image, framing.size, framing.box, RESAMPLING[how.interpolation]), framing.corner, how)


def frame(picture: tuple[int, int], how: Preprocessing) -> Framing:
    """Where an upright picture of that (width, height) goes. Raises as `preprocess`."""
    if how.mode == "letterbox":
        placed = place(picture, how)
        return Framing(placed.fitted, (0, 0, *placed.fitted), placed.corner)
    if how.mode == "pad":
        width, height = _fitted(picture, how)
        return Framing((width, height), (0, 0, width, height), (round((how.width - width) / 2), round((how.height - height) / 2)))
    size = (how.resize_size, how.resize_size) if how.resize_size else (how.width, how.height)
    if how.mode == "crop":
        size = shorter_side(picture, how.resize_size or min(how.height, how.width))
    return Framing(size, _centre(size, how))


def shorter_side(size: tuple[int, int], target: int) -> tuple[int, int]:
    """(width, height) after the shorter side became `target` pixels: torchvision's `_compute_resized_output_size`, which rounds down.

    Raises ImageTooLarge where the longer side is more than `MAX_ASPECT` times the shorter.
    """
    width, height = size
    short, long = min(size), max(size)
    if long > MAX_ASPECT * short:
        raise ImageTooLarge(
            f"expected a picture whose longer side is at most {MAX_ASPECT} times the shorter, got {width} x {height} pixels: crop it first"
        )
    longer = int(target * long / short)
    return (target, longer) if width <= height else (longer, target)


def _centre(size: tuple[int, int], how: Preprocessing) -> Box:
    """The box of a picture of that size that `how` keeps; where it reaches outside, `resized` gives the black of torchvision's padding."""
    left, top = _start(size[0], how.width), _start(size[1], how.height)
    return left, top, left + how.width, top + how.height


def _start(have: int, want: int) -> int:
    """Where the crop starts on one axis; torchvision rounds halves to even inside the picture and pads the smaller half first."""
    return round((have - want) / 2) if have >= want else -((want - have) // 2)


def _fitted(picture: tuple[int, int], how: Preprocessing) -> tuple[int, int]:
    """As `PIL.ImageOps.contain`, except that a side never vanishes."""
    ratio, wanted = picture[0] / picture[1], how.width / how.height
    if ratio > wanted:
        return how.width, max(1, round(picture[1] / picture[0] * how.width))
    if ratio < wanted:
        return max(1, round(picture[0] / picture[1] * how.height)), how.height
    return how.width, how.height
