"""Image files of any format, decoded to uint8 pixels."""

from __future__ import annotations

import dataclasses
import errno
import functools
import logging
import os
import textwrap
import threading
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from hpo_mab._errors import DataError
from hpo_mab._labels import FIRST_LINE, NEXT_LINE

if TYPE_CHECKING:
    from PIL.Image import Image

_log = logging.getLogger("hpo_mab.data")
_GREY_MODES = {"1", "L", "LA", "La", "I", "F"}
_ALPHA_MODES = {"LA", "La", "PA", "RGBA", "RGBa"}
#: Formats that Pillow registers without decoding them itself. EPS starts Ghostscript.
_NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
_WHITE = 255.0
#: Images of more pixels are decoded one at a time: in memory are two copies of 4 bytes a pixel.
_LARGE = 2**26
_one_large = threading.Lock()

_Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


@dataclasses.dataclass(frozen=True, slots=True)
class Picture:
    """One decoded file, scaled and cropped, before the data set decides its range of values.

    Attributes:
        pixels: [size, size, channels]. For 16 bits and more, float32 with one channel. Otherwise
            uint8 with one channel (grey), two (grey, alpha), three (RGB) or four (RGBA).
        side: Shorter side of the file's image in pixels.
    """

    pixels: _Array
    side: int

    @property
    def is_deep(self) -> bool:
        """Whether the file has more than 8 bits a channel."""
        return bool(self.pixels.dtype != np.uint8)

    @property
    def has_alpha(self) -> bool:
        """Whether parts of the image are transparent."""
        return bool(self.pixels.shape[2] % 2 == 0)

    @property
    def is_grey(self) -> bool:
        """Whether the image has no colour."""
        return bool(self.pixels.shape[2] <= 2)


@functools.cache
def readable() -> tuple[dict[str, str], tuple[str, ...]]:
    """File suffixes with the format of each, and all formats, that Pillow decodes by itself."""
    from PIL import Image

    Image.init()
    formats = tuple(sorted(set(Image.OPEN) - _NOT_DECODED))
    known = Image.registered_extensions().items()
    # Pillow opens MPO, two JPEG images in a file, as JPEG.
    return {suffix: name for suffix, name in known if name in (*formats, "MPO")}, formats


def header(path: Path) -> tuple[int, bool, int] | None:
    """What is known before an image is decoded; None for a file that cannot be read.

    Returns:
        Its shorter side in pixels, whether it is grey, and bytes a pixel of its `Picture`.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=readable()[1]) as image:
            grey = _is_grey(image)
            size = 4 if _is_deep(image) else (1 if grey else 3) + _has_alpha(image)
            return min(image.size), grey, size
    except Exception:  # `read` names the file and the reason.
        return None


def read_all(paths: Sequence[Path], *, size: int) -> list[Picture | str]:
    """Decode files in parallel, scaled and cropped to ``size`` pixels in height and width.

    If it takes long, progress is logged (``hpo_mab.data``, a warning, every 10 seconds).

    Returns:
        For each file the picture, or the reason why it cannot be read.
    """
    # Pillow's warnings about metadata do not name the file, and the image can be used.
    with warnings.catch_warnings(action="ignore"), ThreadPoolExecutor() as pool:
        found, due = [], time.monotonic() + FIRST_LINE
        for done, picture in enumerate(pool.map(lambda path: read(path, size), paths), start=1):
            found.append(picture)
            if time.monotonic() >= due:
                due = time.monotonic() + NEXT_LINE
                _log.warning("%s of %s images decoded.", f"{done:,}", f"{len(paths):,}")
        return found


def read(path: Path, size: int) -> Picture | str:
    """Decode one file: the picture, or the reason why it cannot be read."""
    from PIL import Image

    try:
        with Image.open(path, formats=readable()[1]) as image:
            if image.width * image.height <= _LARGE:
                return _decoded(image, size)
            with _one_large:
                return _decoded(image, size)
    except Exception as error:  # Decoders raise errors of every type on damaged files.
        # A system error, or too little memory, may not occur next time, but the cache would leave
        # the image out for good. EINVAL is no system error: decoders raise it for a negative offset
        # in a damaged file.
        reason = None
        if isinstance(error, MemoryError):
            reason = "too little memory; remove the file if it is damaged"
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            reason = error.strerror or str(error)
        if reason is not None:
            shown = os.fsencode(path).decode(errors="replace")
            raise DataError(f"{shown} cannot be read: {reason}.") from None
        return _error_text(error, path)


def _decoded(image: Image, size: int) -> Picture:
    _make_upright(image)
    return Picture(_fitted_pixels(image, size), min(image.size))


def _make_upright(image: Image) -> None:
    """Rotate or mirror an image as its metadata say."""
    from PIL import ImageOps

    # Loading a TIFF rotates it, and removes the tag.
    image.load()
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception:
        # Damaged metadata raise errors of every type. The pixels are turned before Pillow rewrites
        # the metadata.
        pass


def _fitted_pixels(image: Image, size: int) -> _Array:
    """Pixels scaled and cropped, as `Picture` holds them; alpha only where it is not 255."""
    from PIL import Image, ImageOps

    if _is_deep(image):
        plain = _as_float(image)
    else:
        colours = "L" if _is_grey(image) else "RGB"
        plain = image.convert(f"{colours}A" if _has_alpha(image) else colours)
    fitted = ImageOps.fit(plain, (size, size), method=Image.Resampling.BILINEAR)
    pixels = np.asarray(fitted).reshape(size, size, -1)
    # Without a transparent pixel the image needs no background.
    if pixels.shape[2] % 2 == 0 and bool((pixels[..., -1] == 255).all()):
        return np.ascontiguousarray(pixels[..., :-1])
    return pixels


def _as_float(image: Image) -> Image:
    """Values of 16 or 32 bits as mode F; what is not finite becomes the smallest finite value."""
    from PIL import Image

    values = np.asarray(image.convert("I") if image.mode.startswith("I") else image)
    values = values.astype(np.float32)
    finite = np.isfinite(values)
    if not finite.any():
        raise ValueError("no pixel has a finite value")
    return Image.fromarray(np.where(finite, values, values[finite].min()))


def _is_deep(image: Image) -> bool:
    return image.mode.startswith(("I", "F"))


def _is_grey(image: Image) -> bool:
    return image.mode in _GREY_MODES or image.mode.startswith("I;16")


def _has_alpha(image: Image) -> bool:
    return image.mode in _ALPHA_MODES or "transparency" in image.info


def _error_text(error: Exception, path: Path) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "not an image that Pillow can read"
    text = str(error).replace(str(path), path.name) or type(error).__name__
    return textwrap.shorten(text, width=100, placeholder=" ...").rstrip(".")


class Rendering:
    """Converts the pictures of one data set to uint8 pixels, all in the same way.

    Images of 16 bits, 32 bits and floats are scaled so that the data set's smallest value becomes
    0 and its largest 255. If the data set also has 8-bit images and no value is negative, 0 stays
    0, and the largest value of the bits in use (1.0 for floats up to 1) becomes 255. So both kinds
    of images have the same scale of brightness.

    Transparent parts show a background: white, or black where what is visible is light.

    Attributes:
        channels: 1 where all pictures are grey, otherwise 3.
    """

    def __init__(self, pictures: Sequence[Picture]) -> None:
        self.channels = 1 if all(picture.is_grey for picture in pictures) else 3
        self._low, self._high = _value_range(pictures)
        self._background = _background(pictures)

    def render(self, picture: Picture) -> _Array:
        """Pixels of one picture, uint8 [channels, size, size]."""
        pixels = picture.pixels
        if picture.is_deep:
            scale = 255 / (self._high - self._low or 1.0)
            scaled = (pixels.astype(np.float64) - self._low) * scale
            pixels = np.rint(scaled).clip(0, 255).astype(np.uint8)
        elif picture.has_alpha:
            opacity = pixels[..., -1:] / 255
            shown = pixels[..., :-1] * opacity + self._background * (1 - opacity)
            pixels = np.rint(shown).astype(np.uint8)
        first = pixels.transpose(2, 0, 1)
        return np.broadcast_to(first, (self.channels, *first.shape[1:]))

    def is_constant(self, picture: Picture) -> bool:
        """Whether a picture's pixels are all equal, so that it shows nothing."""
        pixels = self.render(picture)
        return bool((pixels == pixels[:, :1, :1]).all())

    def stack(self, pictures: list[Picture]) -> Tensor:
        """Pixels of pictures, uint8 [N, channels, size, size]; empties the list."""
        size = pictures[0].pixels.shape[0]
        stacked = np.empty((len(pictures), self.channels, size, size), dtype=np.uint8)
        pictures.reverse()
        for place in stacked:
            place[:] = self.render(pictures.pop())
        return torch.from_numpy(stacked)


def _value_range(pictures: Sequence[Picture]) -> tuple[float, float]:
    """The values of deep pictures that become 0 and 255, see `Rendering`."""
    deep = [picture.pixels for picture in pictures if picture.is_deep]
    if not deep:
        return 0.0, 255.0
    low = float(min(pixels.min() for pixels in deep))
    high = float(max(pixels.max() for pixels in deep))
    if len(deep) == len(pictures) or low < 0:
        return low, high
    # Next to 8-bit images, 0 stays black and the largest value of the bits in use becomes white.
    bits = max(8, int(high).bit_length())
    return 0.0, 1.0 if high <= 1 else float(2**bits - 1)


def _background(pictures: Sequence[Picture]) -> float:
    """Grey level behind transparent parts: far from the mean of what is visible."""
    visible = light = 0.0
    for picture in pictures:
        if picture.has_alpha:
            opacity = picture.pixels[..., -1].astype(np.float64)
            visible += opacity.sum()
            light += (picture.pixels[..., :-1].mean(axis=2) * opacity).sum()
    return 0.0 if light > visible * _WHITE / 2 else _WHITE
