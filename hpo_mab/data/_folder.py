"""Any folder of images, a subfolder for each class."""

from __future__ import annotations

import collections
import dataclasses
import operator
import os
import re
import statistics
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import torch

from hpo_mab import _machine
from hpo_mab._errors import DataError, HpoMabWarning, check_integer
from hpo_mab.data import _images, _pictures
from hpo_mab.data._images import ImageData

_SPLIT_NAMES = {
    "train": {"train", "training"},
    "validation": {"val", "valid", "validation"},
    "test": {"test", "testing"},
}
#: Largest size that is chosen without ``data.size``.
_LARGEST_CHOICE = 64
_SMALLEST = 4
#: Files whose headers decide the size and the memory needed.
_SAMPLED = 256
#: Most files that a warning names.
_NAMED = 20

_Files: TypeAlias = list[tuple[Path, int]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """The image files of a folder.

    Attributes:
        classes: Names of the classes.
        files: Files with their class, by part; ``"train"`` is always there.
        notes: Which files were used and which not, a sentence each.
    """

    classes: tuple[str, ...]
    files: Mapping[str, _Files]
    notes: tuple[str, ...]

    @property
    def everything(self) -> list[Path]:
        """All files, part by part."""
        return [path for files in self.files.values() for path, _ in files]


def image_folder(*, root: Path, size: int | None = None) -> _images.Decoded:
    """Images from ``root/train/<class>/``, ``root/val/<class>/`` and ``root/test/<class>/``.

    The split folders may be spelt in any case, and as training, valid, validation and testing.
    Without a test folder a fixed stratified fifth of the training images is the test part; without
    a training folder the classes are the other folders in ``root``. Images are scaled to ``size``
    on the shorter side and cropped in the middle; they stay grey where all of them are, and become
    RGB otherwise. Classes are the sorted folder names; a class folder's own folders belong to it,
    linked ones included. Hidden files are passed over. A damaged file is left out.

    Args:
        root: Folder of the data set.
        size: Height and width of the images made, in pixels; at least 4. None takes the median
            shorter side of the images, at most 64.

    Raises:
        ArgumentError: ``size`` out of bounds.
        DataError: No such folder, fewer than two classes, a class without images, or a part whose
            images are all damaged. Test or validation classes that the training part lacks, a file
            that the system refuses to read, or more images than fit into memory.
    """
    if size is not None:
        check_integer("size", size, _SMALLEST)
    layout = _find_files(root)
    # With the classes: one without images is an error also after the others were decoded.
    options = {"size": size, "classes": layout.classes}
    key = _images.fingerprint(layout.everything, root=root, options=options)
    name = f"image_folder_{size or 'auto'}"
    decoded = _images.read(root, name=name, key=key)
    if decoded is None:
        decoded = _decode(root, layout, size=_checked_size(layout.everything, size))
        _images.write(root, decoded, name=name, key=key)
    for text in decoded.warnings:
        warnings.warn(text, HpoMabWarning, stacklevel=4)
    for part in decoded.parts.values():
        part.files = key
    return dataclasses.replace(decoded, notes=layout.notes)


#: Order of files on every system; on Windows, paths themselves are compared without case.
_parts = operator.attrgetter("parts")


class _Walk:
    """Finds image files, and counts the others by the reason why they are left out."""

    def __init__(self) -> None:
        self.passed: collections.Counter[str] = collections.Counter()

    def folders(self, folder: Path) -> dict[str, Path]:
        """Visible folders in ``folder`` by name, sorted; image files there are counted."""
        found = {}
        for path in sorted(folder.iterdir(), key=_parts):
            if path.is_dir():
                if not _is_hidden(path.name) and not _is_of_database(path):
                    found[path.name] = path
            elif _is_image(path.name):
                self.passed["outside class folders"] += 1
        return found

    def images(self, folder: Path) -> list[Path]:
        """Image files in and below ``folder``, sorted; linked folders are followed, each once."""
        found, seen = [], set()
        for where, names, files in os.walk(folder, followlinks=True, onerror=self._count):
            real = os.path.realpath(where)
            if real in seen:
                names.clear()
                continue
            seen.add(real)
            for name in filter(_is_hidden, names):
                inside = sum(len(below) for _, _, below in os.walk(Path(where, name)))
                self.passed["hidden"] += inside
            # Sorted: of two paths to one folder the first is taken, on every file system.
            names[:] = sorted(name for name in names if not _is_hidden(name))
            found += [Path(where, name) for name in files if self._is_taken(where, name)]
        return sorted(found, key=_parts)

    def _is_taken(self, where: str, name: str) -> bool:
        if _is_hidden(name):
            self.passed["hidden"] += 1
        elif not _is_image(name):
            self.passed[Path(name).suffix.lower() or "without suffix"] += 1
        elif not Path(where, name).is_file():
            self.passed["broken links and special files"] += 1
        else:
            return True
        return False

    def _count(self, error: OSError) -> None:
        self.passed["folders that cannot be opened"] += 1

    def note(self) -> tuple[str, ...]:
        """How many files were passed over and why, in one sentence; empty if none was."""
        if not self.passed:
            return ()
        return (f"Passed over: {_counts_text(self.passed.most_common(), 6)}.",)


def _is_hidden(name: str) -> bool:
    # macOS, Synology and notebooks store copies of images in such folders, next to the originals.
    return name.startswith(".") or name in ("__MACOSX", "@eaDir")


def _is_of_database(folder: Path) -> bool:
    """Whether a folder has the files of a study database next to it; its name is no class."""
    database, _, what = folder.name.rpartition("_")
    files = (folder.with_name(f"{database}{one}") for one in (".db", ".sqlite", ".sqlite3"))
    # The default file's name is also that of the folders of a database server.
    near = database == "hpo_mab" or any(one.is_file() for one in files)
    return near and what in ("artifacts", "checkpoints")


def _is_image(name: str) -> bool:
    return not _is_hidden(name) and Path(name).suffix.lower() in _pictures.readable()[0]


def _counts_text(counts: Sequence[tuple[str, int]], most: int) -> str:
    texts = [f"{count:,} {name}" for name, count in counts[:most]]
    rest = sum(count for _, count in counts[most:])
    return ", ".join([*texts, f"{rest:,} others"] if rest else texts)


def _find_files(root: Path) -> _Layout:
    if not root.is_dir():
        raise DataError(
            f"Data set 'image_folder' needs the folder {root}, which does not exist or is a file. "
            "--data-root (data.root) names another."
        )
    walk = _Walk()
    folders = walk.folders(root)
    splits = _split_folders(root, folders)
    base = splits.pop("train", root)
    if base == root:
        listed = {name: path for name, path in folders.items() if path not in splits.values()}
    else:
        listed = walk.folders(base)
    if len(listed) < 2:
        named = f" ({', '.join(listed)})" if listed else ""
        others = "".join(f" {path.name}/ is not used for training." for path in splits.values())
        raise DataError(
            f"Data set 'image_folder' needs a folder for each of at least two classes in {base}, "
            f"got {len(listed)}{named}.{others}"
        )
    classes = tuple(listed)
    files = {"train": _class_files(listed, classes, walk)}
    notes = []
    for part, folder in splits.items():
        below = _Walk().folders(folder)
        # One folder may hold the images of a part without labels.
        if not set(below) & set(classes) and len(below) < 2:
            unlabelled = len(walk.images(folder))
            notes.append(
                f"{folder.name}/ has no folder of a class; images not used: {unlabelled:,}."
            )
            continue
        unknown = set(below) - set(classes)
        if unknown:
            raise DataError(
                f"{folder} must have only classes of the training images, "
                f"got also {', '.join(sorted(unknown))}."
            )
        files[part] = _class_files(walk.folders(folder), classes, walk)
    empty = (folder.name for part, folder in splits.items() if files.get(part) == [])
    notes += [f"{name}/ has no image; training images take its place." for name in empty]
    if base != root:
        unused = [n for n, path in folders.items() if path not in (base, *splits.values())]
        notes += [f"Folders not used: {', '.join(unused)}."] if unused else []
    return _Layout(classes=classes, files=files, notes=(*notes, *walk.note()))


def _split_folders(root: Path, folders: Mapping[str, Path]) -> dict[str, Path]:
    """The folders in ``root`` that are parts of the data set and not classes."""
    found: dict[str, Path] = {}
    for name, path in folders.items():
        part = _part_named(name)
        if part is None or _is_class(name, path, part, found):
            continue
        if part in found:
            raise DataError(
                f"{root} holds two folders for the part '{part}', {found[part].name} and {name}; "
                "rename or remove one."
            )
        found[part] = path
    return found


def _is_class(name: str, path: Path, part: str, found: Mapping[str, Path]) -> bool:
    """Whether a folder with the name of a part is a class: it has no folders of classes."""
    if part == "train":  # Trains may be a class: its folder has images and no folders.
        return not _Walk().folders(path)
    valid = name.casefold() == "valid" and "train" not in found
    return valid and not _Walk().folders(path) and bool(_Walk().images(path))


def _part_named(name: str) -> str | None:
    word = re.sub(r"[-_ ]?(set|data|images)$", "", name.casefold())
    return next((part for part, words in _SPLIT_NAMES.items() if word in words), None)


def _class_files(folders: Mapping[str, Path], classes: tuple[str, ...], walk: _Walk) -> _Files:
    return [
        (path, number)
        for number, name in enumerate(classes)
        if name in folders
        for path in walk.images(folders[name])
    ]


def _checked_size(paths: Sequence[Path], size: int | None) -> int:
    """The size of the images to make, which fit into memory."""
    # Evenly spaced files, because opening all of a large folder would take long.
    step = max(1, len(paths) // _SAMPLED)
    with warnings.catch_warnings(action="ignore"):  # As in `_pictures.read_all`.
        headers = [one for path in paths[::step] if (one := _pictures.header(path)) is not None]
    if size is None:
        sides = [side for side, _, _ in headers]
        median = int(statistics.median(sides)) if sides else _LARGEST_CHOICE
        size = min(max(median, _SMALLEST), _LARGEST_CHOICE)
    # Bytes a pixel: of the images made, and at most of the pictures decoded before.
    made = 1 if all(grey for _, grey, _ in headers) else 3
    decoded = statistics.mean(size for _, _, size in headers) if headers else 0
    room, each = _machine.available_memory(), len(paths) * max(made, decoded)
    if room is not None and each * size**2 > room:
        fitting = int((room / each) ** 0.5)
        hint = f"data.size={fitting} fits" if fitting >= _SMALLEST else "use fewer images"
        raise DataError(
            f"{len(paths):,} images of {size}x{size} pixels need {each * size**2 / 2**30:,.2f} GiB "
            f"of memory, of which {room / 2**30:,.2f} GiB are available; {hint}."
        )
    return size


def _decode(root: Path, layout: _Layout, *, size: int) -> _images.Decoded:
    # A name may hold bytes that are no UTF-8, which could not be printed.
    paths = (os.fsencode(path.relative_to(root).as_posix()) for path in layout.everything)
    names = [path.decode(errors="replace") for path in paths]
    read = _pictures.read_all(layout.everything, size=size)
    pictures = [found for found in read if not isinstance(found, str)]
    if not pictures:
        raise DataError(f"Data set 'image_folder' holds no readable image.{_joined(layout.notes)}")
    rendering = _pictures.Rendering(pictures)
    sides = [picture.side for picture in pictures]
    texts = _image_warnings(names, read, rendering)
    parts = _readable_parts(layout, read)
    _check_present(layout, parts, root)
    # The training files come first. The zip has no name, because a variable would keep `read`.
    taken = [
        name
        for name, found, _ in zip(names, read, layout.files["train"], strict=False)
        if not isinstance(found, str)
    ]
    # Without these references each picture is freed once it is in its stack. So all pixels are in
    # memory once, not twice.
    del read, pictures
    made = {
        part: ImageData(
            labels=torch.tensor([number for _, number in parts[part]]),
            images=rendering.stack([picture for picture, _ in parts.pop(part)]),
            classes=layout.classes,
        )
        for part in [name for name, found in parts.items() if found]
    }
    return _images.Decoded(
        parts=made, sides=(min(sides), max(sides)), warnings=texts, names=tuple(taken)
    )


def _readable_parts(
    layout: _Layout, read: Sequence[_pictures.Picture | str]
) -> dict[str, list[tuple[_pictures.Picture, int]]]:
    """The pictures of each part with their class."""
    parts, start = {}, 0
    for part, files in layout.files.items():
        found = zip(read[start : start + len(files)], files, strict=True)
        parts[part] = [(picture, n) for picture, (_, n) in found if not isinstance(picture, str)]
        start += len(files)
    return parts


def _check_present(
    layout: _Layout, parts: Mapping[str, Sequence[tuple[_pictures.Picture, int]]], root: Path
) -> None:
    for part, pictures in parts.items():
        if layout.files[part] and not pictures:
            raise DataError(
                f"No readable image in the part '{part}' of {root}.{_joined(layout.notes)}"
            )
    present = {number for _, number in parts["train"]}
    absent = [name for number, name in enumerate(layout.classes) if number not in present]
    if absent:
        raise DataError(
            f"No readable training image of class {', '.join(absent)} in {root}."
            f"{_joined(layout.notes)}"
        )


def _joined(notes: Sequence[str]) -> str:
    return "".join(f" {note}" for note in notes)


def _image_warnings(
    names: Sequence[str],
    read: Sequence[_pictures.Picture | str],
    rendering: _pictures.Rendering,
) -> tuple[str, ...]:
    unreadable, constant = [], []
    for name, found in zip(names, read, strict=True):
        if isinstance(found, str):
            unreadable.append(f"{name} ({found})")
        elif rendering.is_constant(found):
            constant.append(name)
    kinds = {"cannot be read and are left out": unreadable, "have a single colour": constant}
    return tuple(
        f"{len(listed)} of {len(names)} images {what}: {_first_few(listed)}."
        for what, listed in kinds.items()
        if listed
    )


def _first_few(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _NAMED} more" if len(texts) > _NAMED else ""
    return f"{', '.join(texts[:_NAMED])}{more}"
