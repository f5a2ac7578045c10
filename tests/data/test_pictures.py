"""Every file is used with its content, or left out with its name and the reason."""

from __future__ import annotations

import itertools
import struct
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from parts import whole_parts
from PIL import Image

from hpo_mab import HpoMabWarning
from hpo_mab.data import _pictures

_RAMP = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)


def _folder(root: Path, make: Callable[[int], Image.Image], suffix: str = "png") -> Path:
    """Two classes of five images each."""
    for number in range(10):
        path = root / ("cat", "dog")[number % 2] / f"{number}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        make(number).save(path)
    return root


def _pixels(root: Path, **options: Any) -> np.ndarray[Any, Any]:
    train, test = whole_parts("image_folder", root=root, size=4, **options)
    return np.concatenate([train.images.numpy(), test.images.numpy()])


def _shares(number: int) -> np.ndarray[Any, Any]:
    """Values of an image in [0, 1]; over all ten images they reach both ends."""
    return _RAMP * (number + 1) / 10


@pytest.mark.parametrize(
    ("low", "high", "kind", "suffix"),
    [
        (0, 1, np.float32, "tif"),
        (-1000, 3000, np.int32, "tif"),
        (0, 4095, np.uint16, "png"),
        (30_000, 31_000, np.uint16, "png"),
        (0, 65_535, np.uint16, "tif"),
        (5e-7, 6e-6, np.float32, "tif"),
    ],
)
def test_more_than_eight_bits_are_scaled_by_the_range_of_the_data_set(
    tmp_path: Path, low: float, high: float, kind: type[Any], suffix: str
) -> None:
    def make(number: int) -> Image.Image:
        return Image.fromarray((low + (high - low) * _shares(number)).astype(kind))

    pixels = _pixels(_folder(tmp_path, make, suffix))
    assert (pixels.min(), pixels.max()) == (0, 255)
    expected = sorted(np.rint(255 * _shares(number)).max() for number in range(10))
    assert sorted(pixels.reshape(10, -1).max(axis=1)) == pytest.approx(expected, abs=1)
    # All images by the same range: a dark image stays dark.
    assert len(np.unique(pixels)) > 70


@pytest.mark.parametrize(("mode", "channels"), [("LA", 1), ("RGBA", 3)])
@pytest.mark.parametrize(("ink", "background"), [(0, 255), (255, 0)])
def test_drawings_on_a_transparent_background_keep_their_lines(
    tmp_path: Path, mode: str, channels: int, ink: int, background: int
) -> None:
    def make(number: int) -> Image.Image:
        colour = (ink,) * (len(mode) - 1)
        image = Image.new(mode, (4, 4), (*colour, 0))
        image.putpixel((number % 4, 1), (*colour, 255))
        return image

    pixels = _pixels(_folder(tmp_path, make))
    assert pixels.shape == (10, channels, 4, 4)
    for image in pixels[:, 0]:
        assert (image == ink).sum() == 1
        assert (image == background).sum() == 15


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_transparent_colour_is_background(tmp_path: Path, mode: str) -> None:
    black = 0 if mode != "RGB" else (0, 0, 0)

    def make(number: int) -> Image.Image:
        image = Image.new("L", (4, 4), 0)
        image.putpixel((number % 4, 1), 40)
        made = image.convert(mode)
        made.info["transparency"] = black
        return made

    pixels = _pixels(_folder(tmp_path, make))
    assert (pixels[:, 0] == 255).sum(axis=(1, 2)).tolist() == [15] * 10


def test_opaque_images_with_an_alpha_channel_are_used_as_they_are(tmp_path: Path) -> None:
    root = _folder(tmp_path, lambda n: Image.fromarray(np.uint8(255 * _shares(n))).convert("LA"))
    assert sorted(_pixels(root).max(axis=(1, 2, 3))) == [int(25.5 * (n + 1)) for n in range(10)]


def test_images_of_a_single_colour_are_named_at_every_load(tmp_path: Path) -> None:
    _folder(tmp_path, lambda n: Image.fromarray(np.uint8(255 * _shares(n))))
    Image.new("L", (9, 9), 7).save(tmp_path / "cat" / "0.png")
    Image.new("LA", (9, 9), (7, 0)).save(tmp_path / "dog" / "1.png")
    for _ in range(2):
        with pytest.warns(HpoMabWarning, match=r"2 of 10 images .* single colour: cat/0.*dog/1"):
            whole_parts("image_folder", root=tmp_path, size=4)


def _with_exif(*entries: tuple[int, int, int, int]) -> bytes:
    """A JPEG segment of metadata, in the byte order of Intel."""
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    count = struct.pack("<H", len(entries))
    body = b"Exif\0\0II*\0\x08\0\0\0" + count + packed + b"\0\0\0\0"
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


ORIENTATION = 0x0112
HALF_TURN = (ORIENTATION, 3, 1, 3)
#: Metadata, and whether the orientation in them can be read. Pillow raises on most of them when it
#: reads or rewrites them.
METADATA = {
    "whole": ([HALF_TURN], True),
    "a number too large": ([HALF_TURN, (273, 6, 1, 2**32 - 1)], True),
    "a date that is a number": ([HALF_TURN, (306, 12, 1, 8)], True),
    "a resolution in words": ([HALF_TURN, (282, 2, 1, 2**32 - 1)], True),
    "a pointer to nowhere": ([HALF_TURN, (34665, 9, 1, 2**32 - 1)], True),
    "an orientation in words": ([(ORIENTATION, 2, 4, 0)], False),
    "a count beyond the file": ([(ORIENTATION, 3, 2**31, 2**31)], False),
    "an unknown type": ([(ORIENTATION, 99, 1, 6)], False),
    "no entry": ([], False),
}


@pytest.mark.parametrize(("entries", "turned"), METADATA.values(), ids=METADATA)
def test_an_image_is_used_and_turned_whatever_its_metadata_hold(
    tmp_path: Path, entries: list[tuple[int, int, int, int]], turned: bool
) -> None:
    halves = Image.fromarray(np.uint8([[200] * 16] * 8 + [[0] * 16] * 8))
    root = _folder(tmp_path, lambda _: halves, "jpg")
    photo = root / "cat" / "0.jpg"
    whole = photo.read_bytes()
    photo.write_bytes(whole[:2] + _with_exif(*entries) + whole[2:])
    pixels = _pixels(root)
    assert len(pixels) == 10
    assert (pixels[:, 0, 0, 0] < 100).sum() == turned


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_an_image_of_any_format_is_turned_once(tmp_path: Path, suffix: str) -> None:
    halves = Image.fromarray(np.uint8([[200] * 16] * 8 + [[0] * 16] * 8))
    root = _folder(tmp_path, lambda _: halves, suffix)
    exif = Image.Exif()
    exif[ORIENTATION] = 3  # Half a turn: a second one would undo it.
    halves.save(root / "cat" / f"0.{suffix}", exif=exif)
    assert (_pixels(root)[:, 0, 0, 0] < 100).sum() == 1


def test_any_error_of_a_decoder_leaves_out_the_file_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _folder(tmp_path, lambda n: Image.fromarray(np.uint8(255 * _shares(n))))
    fitted = _pictures._fitted_pixels

    def stumble(image: Image.Image, size: int) -> Any:
        if str(image.getpixel((3, 3))) == "25":  # The darkest.
            raise struct.error("unpack requires a buffer of 4 bytes")
        return fitted(image, size)

    monkeypatch.setattr(_pictures, "_fitted_pixels", stumble)
    with pytest.warns(HpoMabWarning, match=r"cat/0\.png \(unpack requires a buffer of 4 bytes\)"):
        assert len(_pixels(tmp_path)) == 9


@pytest.mark.parametrize("largest", [15, 16])
def test_large_images_are_decoded_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, largest: int
) -> None:
    monkeypatch.setattr(_pictures, "_LARGE", largest)
    monkeypatch.setattr(_pictures, "_one_large", lock := mock.MagicMock())
    _pixels(_folder(tmp_path, lambda n: Image.fromarray(np.uint8(255 * _shares(n)))))
    assert lock.__enter__.called is (largest < 16)


def test_decoding_shows_its_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seconds = itertools.count(0, 3)
    clock = types.SimpleNamespace(monotonic=lambda: float(next(seconds)))
    monkeypatch.setattr(_pictures, "time", clock)
    _pixels(_folder(tmp_path, lambda n: Image.fromarray(np.uint8(255 * _shares(n)))))
    assert caplog.messages == [f"{done} of 10 images decoded." for done in (1, 5, 9)]


@pytest.mark.parametrize("name", ["cut.png", "cut.jpg", "cut.gif", "cut.tif", "cut.bmp"])
def test_a_file_cut_short_is_left_out_with_its_name(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    _folder(tmp_path, lambda n: Image.fromarray(np.uint8(255 * _shares(n))))
    path = tmp_path / "cat" / name
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.warns(HpoMabWarning, match=rf"1 of 11 images .*: cat/{name} \(.+\)\.$"):
        assert len(_pixels(tmp_path)) == 10


def test_floats_that_are_not_finite_do_not_spoil_the_range(tmp_path: Path) -> None:
    def make(number: int) -> Image.Image:
        values = _shares(number).copy()
        values[0, :2] = (np.nan, np.inf)
        return Image.fromarray(values)

    pixels = _pixels(_folder(tmp_path, make, "tif"))
    assert pixels.max() == 255
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "cat" / "0.tif")
    with pytest.warns(HpoMabWarning, match=r"cat/0\.tif \(no pixel has a finite value\)"):
        assert len(_pixels(tmp_path)) == 9


def test_no_format_that_starts_another_program_is_read(tmp_path: Path) -> None:
    suffixes, formats = _pictures.readable()
    assert "EPS" not in formats
    assert ".eps" not in suffixes
    assert {".png", ".jpg", ".jfif", ".jp2", ".tga", ".webp"} <= set(suffixes)
    path = tmp_path / "named.png"
    Image.new("L", (4, 4)).save(path, format="EPS")
    assert _pictures.read(path, 4) == "not an image that Pillow can read"
