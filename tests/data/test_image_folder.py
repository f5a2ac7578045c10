from __future__ import annotations

import os
import warnings
from pathlib import Path, PureWindowsPath
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from parts import whole_parts
from PIL import Image

from hpo_mab import HpoMabWarning, _machine, data
from hpo_mab._errors import ArgumentError, DataError
from hpo_mab.data import ImageSplits, _folder, _pictures


def _write(path: Path, value: int | tuple[int, int, int], *, mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new(mode, (12, 10), value)
    # In one corner, because images of a single colour are warned of.
    image.paste(255, (9, 7, 12, 10))
    image.save(path)


def _split(
    root: Path, name: str, *, each: int = 5, classes: tuple[str, ...] = ("cat", "dog")
) -> None:
    for number, label in enumerate(classes):
        for index in range(each):
            _write(root / name / label / f"{index}.png", 100 * number + index)


def _grey_folder(root: Path, *, each: int = 5) -> None:
    for part in ("train", "test"):
        _split(root, part, each=each)


def test_labels_pixels_and_classes(tmp_path: Path) -> None:
    _grey_folder(tmp_path)
    train, test = whole_parts("image_folder", root=tmp_path, size=8)
    assert train.classes == test.classes == ("cat", "dog")
    assert train.images.shape == (10, 1, 8, 8)
    assert train.labels.tolist() == [0] * 5 + [1] * 5
    assert train.images[:, 0, 3, 3].tolist() == [0, 1, 2, 3, 4, 100, 101, 102, 103, 104]


def test_one_colour_image_makes_all_rgb(tmp_path: Path) -> None:
    _grey_folder(tmp_path)
    _write(tmp_path / "test" / "dog" / "z.png", (10, 20, 30), mode="RGB")
    train, test = whole_parts("image_folder", root=tmp_path, size=8)
    assert train.images.shape == (10, 3, 8, 8)
    assert train.images[6, :, 0, 0].tolist() == [101, 101, 101]
    assert test.images[-1, :, 4, 4].tolist() == [10, 20, 30]


def test_sixteen_bits_next_to_eight_keep_their_brightness(tmp_path: Path) -> None:
    _grey_folder(tmp_path)
    deep = np.full((10, 10), 0x8080, dtype=np.uint16)
    deep[:, 5:] = 0x2020
    Image.fromarray(deep).save(tmp_path / "train" / "cat" / "0.png")
    train, _ = whole_parts("image_folder", root=tmp_path, size=10)
    assert train.images[0].unique().tolist() == [0x20, 0x80]


def test_the_middle_is_cropped_after_scaling_the_shorter_side(tmp_path: Path) -> None:
    _grey_folder(tmp_path)
    wide = np.zeros((10, 30), dtype=np.uint8)
    wide[:, 10:20] = 200
    wide[5:, 10:20] = 100
    Image.fromarray(wide).save(tmp_path / "train" / "cat" / "0.png")
    train, _ = whole_parts("image_folder", root=tmp_path, size=10)
    assert train.images[0].unique().tolist() == [100, 200]


def test_unreadable_images_are_left_out_and_named_every_time(tmp_path: Path) -> None:
    _grey_folder(tmp_path)
    for number in range(5):
        (tmp_path / "train" / "cat" / f"broken{number}.png").write_bytes(b"not an image")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("ignored")
    named = ".*".join(rf"train/cat/broken{number}\.png \(not an image" for number in range(5))
    for _ in range(2):  # The second time from the cache.
        with pytest.warns(HpoMabWarning, match=rf"5 of 25 images .*: {named}"):
            train, _ = whole_parts("image_folder", root=tmp_path, size=8)
        assert len(train) == 10


@pytest.mark.parametrize("below", ["train", "."])
def test_without_test_folder_a_fixed_stratified_fifth_is_held_out(
    tmp_path: Path, below: str
) -> None:
    for number, name in enumerate(("a", "b")):
        for index in range(10):
            _write(tmp_path / below / name / f"{index}.png", 100 * number + index)
    train, test = whole_parts("image_folder", root=tmp_path, size=8)
    assert train.labels.bincount().tolist() == [8, 8]
    assert test.labels.bincount().tolist() == [2, 2]
    together = torch.cat([train.images, test.images])[:, 0, 0, 0]
    assert len(together.unique()) == 20
    again, _ = whole_parts("image_folder", root=tmp_path, size=8)
    assert torch.equal(train.images, again.images)
    splits = data.load_splits("image_folder", root=tmp_path, size=8)
    assert splits.positions is not None
    for place, image in zip(splits.positions.tolist(), splits.train.images, strict=True):
        path = Path(splits.names[place])
        assert image[0, 0, 0] == 100 * (path.parent.name == "b") + int(path.stem)


def test_the_cache_is_used_until_a_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _grey_folder(tmp_path)
    whole_parts("image_folder", root=tmp_path, size=8)
    reads: list[Path] = []
    read = _pictures.read
    monkeypatch.setattr(
        _pictures, "read", lambda path, size: reads.append(path) or read(path, size)
    )
    train, _ = whole_parts("image_folder", root=tmp_path, size=8)
    assert reads == []
    changed = tmp_path / "train" / "cat" / "0.png"
    stamp = changed.stat().st_mtime_ns
    _write(changed, 77)
    os.utime(changed, ns=(stamp + 10**9, stamp + 10**9))
    train, _ = whole_parts("image_folder", root=tmp_path, size=8)
    assert len(reads) == 20
    assert int(train.images[0, 0, 0, 0]) == 77
    assert len(list((tmp_path / ".hpo_mab_cache").iterdir())) == 1  # The old entry is gone.


def test_a_class_without_images_is_an_error_also_after_the_others_are_cached(
    tmp_path: Path,
) -> None:
    _grey_folder(tmp_path)
    whole_parts("image_folder", root=tmp_path, size=8)
    (tmp_path / "train" / "owl").mkdir()
    for _ in range(2):
        with pytest.raises(DataError, match="No readable training image of class owl"):
            data.load_splits("image_folder", root=tmp_path, size=8)


def test_changing_loaded_images_does_not_reach_the_cache(tmp_path: Path) -> None:
    _grey_folder(tmp_path)
    for _ in range(2):
        train, _ = whole_parts("image_folder", root=tmp_path, size=8)
        assert int(train.images[0, 0, 0, 0]) == 0
        train.images.fill_(9)


def test_a_damaged_cache_is_made_again(tmp_path: Path) -> None:
    _grey_folder(tmp_path)
    expected, _ = whole_parts("image_folder", root=tmp_path, size=8)
    pixels = expected.images.clone()
    whole = next(tmp_path.glob(".hpo_mab_cache/*/train-images.npy")).read_bytes()
    damages = (("train-images.npy", whole[:100]), ("meta.json", b"{}"), ("train-images.npy", b""))
    for name, content in damages:
        (file,) = tmp_path.glob(f".hpo_mab_cache/*/{name}")
        file.unlink()  # Loaded images are mapped from it.
        file.write_bytes(content)
        again, _ = whole_parts("image_folder", root=tmp_path, size=8)
        assert torch.equal(again.images, pixels)
        assert file.stat().st_size > 100  # The entry is whole again, under the same name.


def test_a_root_that_cannot_be_written_is_decoded_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _grey_folder(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    train, _ = whole_parts("image_folder", root=tmp_path, size=8)
    assert len(train) == 10
    assert not (tmp_path / ".hpo_mab_cache").exists()


def test_missing_folder_and_useless_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("nowhere", "file"):
        message = rf"needs the folder .*{name}, which does not exist or is a file"
        with pytest.raises(DataError, match=message):
            data.load_splits("image_folder", root=tmp_path / name)
    _write(tmp_path / "train" / "cat" / "0.png", 1)
    with pytest.raises(DataError, match=r"at least two classes in .*train, got 1"):
        data.load_splits("image_folder", root=tmp_path)
    (tmp_path / "train" / "dog").mkdir()
    with pytest.raises(DataError, match="No readable training image of class dog"):
        data.load_splits("image_folder", root=tmp_path)
    _write(tmp_path / "train" / "dog" / "0.png", 1)
    for name in ("cat", "fox"):
        _write(tmp_path / "test" / name / "0.png", 1)
    with pytest.raises(
        DataError, match="must have only classes of the training images, got also fox"
    ):
        whole_parts("image_folder", root=tmp_path)
    # All classes are named otherwise.
    (tmp_path / "test" / "cat").rename(tmp_path / "test" / "Cat")
    with pytest.raises(DataError, match="got also Cat, fox"):
        data.load_splits("image_folder", root=tmp_path)


def test_only_unreadable_images_is_an_error_not_a_crash(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "0.png").write_bytes(b"")
    with warnings.catch_warnings(), pytest.raises(DataError, match="no readable image"):
        data.load_splits("image_folder", root=tmp_path)


@pytest.mark.parametrize("size", [3, 0, 8.0, True])
def test_size_out_of_bounds_is_refused(tmp_path: Path, size: object) -> None:
    with pytest.raises(ArgumentError, match="size must be an integer o"):
        data.load_splits("image_folder", root=tmp_path, size=size)


def _logged(
    root: Path, caplog: pytest.LogCaptureFixture, **options: Any
) -> tuple[ImageSplits, str]:
    """The splits, and what is logged about them."""
    caplog.clear()
    with caplog.at_level("INFO", logger="hpo_mab.data"):
        splits = data.load_splits("image_folder", root=root, validation=0.4, size=8, **options)
    return splits, "\n".join(caplog.messages)


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("train", "val", "test"),
        ("Training", "Validation", "Testing"),
        ("TRAIN", "valid", "Test"),
        ("training_set", "val_images", "test-set"),
    ],
)
def test_split_folders_are_parts_and_no_classes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, train: str, validation: str, test: str
) -> None:
    for name, each in ((train, 5), (validation, 3), (test, 2)):
        _split(tmp_path, name, each=each)
    for _ in range(2):  # The second time from the cache.
        splits, logged = _logged(tmp_path, caplog)
        assert splits.train.classes == ("cat", "dog")
        sizes = [len(part) for part in (splits.train, splits.validation, splits.test)]
        assert sizes == [10, 6, 4]
        assert splits.train.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, *range(100, 105)]
        assert logged.splitlines() == [
            f"{tmp_path.name}: 10 training, 6 validation, 4 test images, 2 classes, "
            "8x8 pixels (from 10)",
            "Training images by class: cat 5, dog 5",
        ]


def test_split_folders_next_to_classes_are_no_classes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _split(tmp_path, ".")
    _split(tmp_path, "Val", each=2)
    _write(tmp_path / "test" / "1.png", 3)
    splits, logged = _logged(tmp_path, caplog)
    assert splits.train.classes == ("cat", "dog")
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (8, 4, 2)
    assert "test/ has no folder of a class; images not used: 1." in logged
    assert "Passed over" not in logged


@pytest.mark.parametrize("below", ["train", "."])
def test_folders_of_a_study_next_to_classes_are_no_classes(tmp_path: Path, below: str) -> None:
    _split(tmp_path, below)
    (tmp_path / below / "study.db").touch()
    for name in ("study_artifacts", "study_checkpoints", "hpo_mab_artifacts"):
        _write(tmp_path / below / name / "0.png", 9)
    for _ in range(2):  # The second time from the cache.
        train, test = whole_parts("image_folder", root=tmp_path, size=8)
        assert train.classes == ("cat", "dog")
        assert len(train) + len(test) == 10
    for number in range(5):
        _write(tmp_path / below / "jpeg_artifacts" / f"{number}.png", number)
    classes = whole_parts("image_folder", root=tmp_path, size=8)[0].classes
    assert classes == ("cat", "dog", "jpeg_artifacts")


@pytest.mark.parametrize("classes", [("bus", "train", "tram"), ("invalid", "unknown", "valid")])
def test_a_class_may_have_the_name_of_a_part(tmp_path: Path, classes: tuple[str, ...]) -> None:
    _split(tmp_path, ".", classes=classes)
    assert whole_parts("image_folder", root=tmp_path, size=8)[0].classes == classes


def test_a_part_without_a_file_is_held_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _split(tmp_path, "train")
    (tmp_path / "Testing" / "cat").mkdir(parents=True)
    train, test = whole_parts("image_folder", root=tmp_path, size=8)
    assert len(test) * 4 == len(train)
    _, logged = _logged(tmp_path, caplog)
    assert "Testing/ has no image; training images take its place." in logged


@pytest.mark.parametrize("below", ["train", "."])
def test_folders_of_classes_without_a_file_are_refused(tmp_path: Path, below: str) -> None:
    for label in ("cat", "dog"):
        (tmp_path / below / label).mkdir(parents=True)
    with pytest.raises(DataError, match="image_folder' holds no readable image"):
        data.load_splits("image_folder", root=tmp_path, size=8)


@pytest.mark.parametrize(
    ("name", "classes"), [("val", ("cat", "dog")), ("valid", ("cat", "dog", "valid"))]
)
def test_images_next_to_classes(tmp_path: Path, name: str, classes: tuple[str, ...]) -> None:
    _split(tmp_path, ".")
    for number in range(5):
        _write(tmp_path / name / f"{number}.png", number)
    assert whole_parts("image_folder", root=tmp_path, size=8)[0].classes == classes
    # Next to a training part it is neither.
    (tmp_path / "train").mkdir()
    for label in ("cat", "dog"):
        (tmp_path / label).rename(tmp_path / "train" / label)
    assert whole_parts("image_folder", root=tmp_path, size=8)[0].classes == ("cat", "dog")


@pytest.mark.parametrize("part", ["validation", "test"])
def test_a_part_without_a_readable_image_is_not_replaced(tmp_path: Path, part: str) -> None:
    _grey_folder(tmp_path)
    for path in (tmp_path / "test").glob("*/*.png"):
        path.write_text("no image")
    (tmp_path / "test").rename(tmp_path / part)
    with pytest.raises(DataError, match=f"No readable image in the part '{part}'"):
        data.load_splits("image_folder", root=tmp_path, size=8)


def test_a_file_that_the_system_does_not_let_be_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _grey_folder(tmp_path)
    read = Image.open

    def refuse(path: Path, **options: Any) -> Any:
        if path.name == "3.png":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", refuse)
        with pytest.raises(DataError, match=r"3\.png cannot be read: Permission denied"):
            data.load_splits("image_folder", root=tmp_path, size=8)
    with monkeypatch.context() as patch:
        patch.setattr(_pictures, "_make_upright", mock.Mock(side_effect=MemoryError))
        with pytest.raises(DataError, match=r"\.png cannot be read: too little memory"):
            data.load_splits("image_folder", root=tmp_path, size=8)
    # Nothing of it is left in the cache.
    assert len(whole_parts("image_folder", root=tmp_path, size=8)[0]) == 10


def test_splits_without_training_images_or_twice_are_refused(tmp_path: Path) -> None:
    for name in ("val", "test"):
        _split(tmp_path, name)
    with pytest.raises(
        DataError, match=r"at least two classes.*got 0\..*test/ is not used.*val/ is not used"
    ):
        whole_parts("image_folder", root=tmp_path)
    for name in ("train", "Training"):
        _split(tmp_path, name)
    with pytest.raises(DataError, match="two folders for the part 'train', Training and train"):
        data.load_splits("image_folder", root=tmp_path)


def test_everything_that_is_passed_over_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _split(tmp_path, "train")
    cat = tmp_path / "train" / "cat"
    _write(cat / ".ipynb_checkpoints" / "0-checkpoint.png", 9)
    _write(cat / "__MACOSX" / "0.png", 9)
    _write(cat / "._0.png", 9)
    _write(tmp_path / "train" / ".hidden" / "0.png", 9)
    _write(tmp_path / "train" / "stray.png", 9)
    _write(tmp_path / "extra" / "0.png", 9)
    for name in ("0.heic", "1.HEIC", "boxes.txt", "README"):
        (cat / name).write_text("")
    (cat / "gone.png").symlink_to(tmp_path / "nowhere.png")
    splits, logged = _logged(tmp_path, caplog)
    assert (len(splits.train) + len(splits.validation) + len(splits.test)) == 10
    assert "Folders not used: extra." in logged
    passed = logged.partition("Passed over: ")[2]
    for text in ("3 hidden", "2 .heic", "1 .txt", "1 without suffix", "1 outside class folders"):
        assert text in passed
    assert "1 broken links and special files" in passed


def test_linked_folders_and_other_suffixes_are_used_once(tmp_path: Path) -> None:
    _split(tmp_path, "photos")
    elsewhere = tmp_path / "elsewhere"
    for number, suffix in enumerate(("jfif", "TIF", "tga", "jp2", "pbm", "mpo")):
        _write(elsewhere / "deep" / f"{number}.{suffix}", 50)
    photos = tmp_path / "photos"
    (photos / "cat" / "more").symlink_to(elsewhere)
    (elsewhere / "deep" / "round").symlink_to(photos / "cat")
    (photos / "fox").symlink_to(elsewhere, target_is_directory=True)
    train, test = whole_parts("image_folder", root=photos, size=8)
    assert train.classes == ("cat", "dog", "fox")
    assert (train.labels.bincount() + test.labels.bincount()).tolist() == [11, 5, 11]


def test_of_two_paths_to_a_folder_the_first_is_taken_on_every_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path / "b" / "1.png", 50)
    _write(tmp_path / "c" / "1.png", 50)
    (tmp_path / "a").symlink_to(tmp_path / "c")
    listed = os.walk
    for backwards in (False, True):

        def walk(top: Any, *, order: bool = backwards, **options: Any) -> Any:
            for where, names, files in listed(top, **options):
                names.sort(reverse=order)
                yield where, names, files

        monkeypatch.setattr(os, "walk", walk)
        found = _folder._Walk().images(tmp_path)
        assert found == [tmp_path / "a" / "1.png", tmp_path / "b" / "1.png"]


@pytest.mark.parametrize(("side", "size"), [(10, 10), (28, 28), (64, 64), (224, 64)])
def test_without_a_size_images_keep_theirs_up_to_64_pixels(
    tmp_path: Path, side: int, size: int
) -> None:
    _split(tmp_path, "train")
    for number in range(8):
        _write(tmp_path / "train" / "cat" / f"{number}.png", 3)
        with Image.open(tmp_path / "train" / "cat" / f"{number}.png") as image:
            image.resize((side + 3, side)).save(tmp_path / "train" / "cat" / f"{number}.png")
    train, _ = whole_parts("image_folder", root=tmp_path)
    assert train.image_size == (size, size)


def test_a_warning_of_pillow_about_a_large_photo_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _grey_folder(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    # As an error, it would hide the sides of the images.
    assert whole_parts("image_folder", root=tmp_path)[0].image_size == (10, 10)


def test_more_images_than_memory_holds_are_refused_before_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _grey_folder(tmp_path)
    monkeypatch.setattr(_machine, "available_memory", lambda: 20 * 40**2)
    monkeypatch.setattr(_pictures, "read_all", None)
    with pytest.raises(DataError, match=r"20 images of 48x48 pixels need .*; data\.size=40 fits"):
        data.load_splits("image_folder", root=tmp_path, size=48)
    monkeypatch.undo()
    assert len(whole_parts("image_folder", root=tmp_path, size=40)[0]) == 10


@pytest.mark.filterwarnings(r"ignore:\d+ of \d+ images:hpo_mab.HpoMabWarning")
@pytest.mark.parametrize(("mode", "size"), [("L", 1), ("RGB", 3), ("RGBA", 4), ("I;16", 4)])
def test_the_memory_needed_is_that_of_decoded_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, size: int
) -> None:
    for number in range(10):
        path = tmp_path / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new(mode, (40, 40), 9 if mode in ("L", "I;16") else None).save(path)
    monkeypatch.setattr(_machine, "available_memory", lambda: 10 * size * 40**2 - 1)
    with pytest.raises(DataError, match=r"10 images of 40x40 pixels need"):
        data.load_splits("image_folder", root=tmp_path, size=40)
    monkeypatch.setattr(_machine, "available_memory", lambda: 10 * size * 40**2)
    assert whole_parts("image_folder", root=tmp_path, size=40)


def test_files_have_one_order_and_one_name_on_every_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = PureWindowsPath("C:/photos")
    files = [root / "cat" / "B.png", root / "cat" / "a.png"]
    assert sorted(files, key=_folder._parts) == files
    layout = _folder._Layout(classes=("cat",), files={"train": [(files[0], 0)]}, notes=())
    _write(tmp_path / "0.png", 7)
    picture = _pictures.read(tmp_path / "0.png", 8)
    monkeypatch.setattr(_pictures, "read_all", lambda paths, size: [picture])
    # As a list of excluded images has it.
    assert _folder._decode(root, layout, size=8).names == ("cat/B.png",)
