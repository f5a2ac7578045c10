"""Reading a study definition: from a TOML file, by name, or from mappings.

Options of the command line override keys of the file.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic

from hpo_mab._errors import ArgumentError, HpoMabError, SpecError, UnknownNameError
from hpo_mab._machine import expanded
from hpo_mab._stored_settings import BUDGET_KEYS, NAMING_KEYS
from hpo_mab.search._definition import ArmSection, DataSection, StudySpec


def builtin_names() -> tuple[str, ...]:
    """Names of the definitions that come with the package."""
    return tuple(sorted(_builtin_paths()))


def load_spec(
    source: str | Path = "digits", overrides: Mapping[str, Any] | None = None
) -> StudySpec:
    """Read a study definition.

    Args:
        source: A TOML file, or the name of a definition that comes with the package.
        overrides: Values by dotted key that replace the file's, e.g. ``{"optimizer.lr": 0.1}``.
            Naming another sampler, pruner, network, optimiser or data set keeps only the options
            it also has. If they name another data set, the definition is named after it, unless
            ``name`` is given. Another folder of images does not change the name.

    Raises:
        SpecError: No such file, not TOML, or a value that cannot be used; names file and key.
    """
    path = _path_of(source)
    try:
        # Windows' editors write a byte-order mark.
        raw = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{source}: not valid TOML: {error}") from None
    except OSError as error:
        raise SpecError(f"{source}: cannot be read: {error.strerror}.") from None
    # Read before the overrides: if they name other data, the definition is renamed.
    before = _data_label(raw)
    try:
        for key, value in _in_order(overrides or {}):
            _override(raw, key, value)
        if "name" not in (overrides or {}):
            _name_after_data(raw, before)
        return make_spec(raw)
    except HpoMabError as error:
        raise SpecError(f"{source}: {error}") from None


def make_spec(raw: Mapping[str, Any]) -> StudySpec:
    """Check a definition given as nested mappings.

    Raises:
        SpecError: A key or value that cannot be used.
        UnknownNameError: An unknown data set, network, optimiser, sampler, pruner or option.
    """
    if not isinstance(raw, Mapping):
        raise SpecError(f"A definition must be a mapping, got {raw!r}; load_spec reads a file.")
    try:
        spec = StudySpec.model_validate(raw)
    except pydantic.ValidationError as error:
        raise SpecError(_invalid_message(error)) from None
    # Imported late, as it imports torch: misspelt keys and file names are refused without it.
    from hpo_mab.search._prepare import check_names

    try:
        check_names(spec)
    except UnknownNameError:
        raise
    except ArgumentError as error:
        raise SpecError(str(error)) from None
    return spec


def _path_of(source: str | Path) -> Path:
    path, builtin = Path(source), _builtin_paths()
    # First: a file or folder of data may have the name of a definition. A `Path` names a file.
    if isinstance(source, str) and source in builtin:
        return builtin[source]
    if path.suffix == ".toml" or path.exists():
        if path.is_dir():
            raise SpecError(f"{source} is a folder; name the definition (.toml) in it.")
        if not path.exists():
            raise SpecError(f"{source}: no such file. Definitions: {', '.join(builtin_names())}.")
        return path
    raise SpecError(str(UnknownNameError("study definition", str(source), builtin)))


def _builtin_paths() -> dict[str, Path]:
    package = Path(__file__).resolve().parents[1]
    installed = {path.stem: path for path in (package / "_studies").glob("*.toml")}
    # In a checkout each definition lies next to its records.
    checkout = {
        path.parent.name: path for path in (package.parent / "studies").glob("*/study.toml")
    }
    return installed or checkout


def _in_order(overrides: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Overrides as they must be set: sections before their keys, kinds before their options."""
    units = [key for key in BUDGET_KEYS if key in overrides]
    if len(units) > 1:
        raise SpecError(f"{' and '.join(units)} cannot both be set: a budget has one unit.")
    kinds = {f"{section}.{key}" for section, key in NAMING_KEYS.items()}
    return sorted(overrides.items(), key=lambda item: (item[0].count("."), item[0] not in kinds))


def _override(raw: dict[str, Any], key: str, value: Any) -> None:
    """Set a value by its dotted key, and remove what does not go with it."""
    *sections, last = key.split(".")
    table = raw
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise SpecError(f"'{key}' cannot be set: '{section}' is not a section.")
    if key in BUDGET_KEYS:
        # The file's unit would conflict with that of the command line.
        for unit in BUDGET_KEYS:
            table.pop(unit.removeprefix("budget."), None)
    names = len(sections) == 1 and NAMING_KEYS.get(sections[0]) == last
    # A value of another type is refused later, when the whole definition is checked.
    if names and isinstance(value, str) and table.get(last) != value:
        from hpo_mab.search._prepare import takes

        for option in [key for key in table if not takes(sections[0], value, key)]:
            del table[option]
    table[last] = value


#: Prefix of the label of a folder of images.
_IMAGE_FOLDER = "image_folder-"


def _data_label(raw: Mapping[str, Any]) -> str:
    """The data's label in a study's name: the data set; for an image folder also its name."""
    section = raw.get("data", {})
    named = {**DataSection().model_dump(), **(section if isinstance(section, Mapping) else {})}
    if named["name"] != "image_folder":
        return str(named["name"])
    return f"{_IMAGE_FOLDER}{expanded(str(named['root'])).resolve().name}"


def _name_after_data(raw: dict[str, Any], before: str) -> None:
    """Name a definition after its data if it was written for other data.

    Otherwise its studies would have the names of studies on the original data. A folder of images
    may move: its images decide whether a study can continue.
    """
    label, name = _data_label(raw), raw.get("name")
    moved = all(each.startswith(_IMAGE_FOLDER) for each in (label, before))
    if label != before and not moved and isinstance(name, str):
        raw["name"] = label if name == before else f"{name}-{label}"


def _keys_of_section(section: Sequence[int | str]) -> list[str]:
    """Keys that a section of a definition has, offered where a key is unknown."""
    if list(section[:2]) == ["compare", "arms"]:
        return list(ArmSection.model_fields)
    model: Any = StudySpec
    for part in section:
        field = model.model_fields.get(part)
        if field is None or not hasattr(field.annotation, "model_fields"):
            return []
        model = field.annotation
    return list(model.model_fields)


def _invalid_message(error: pydantic.ValidationError) -> str:
    """The first mistake that pydantic found, as one sentence, and how many more there are."""
    by_key: dict[str, list[Any]] = {}
    for one in error.errors(include_url=False):
        # pydantic gives one error for each type of a union that the value does not fit.
        parts = [str(part) for part in one["loc"] if not _TYPE_OF_SEVERAL.fullmatch(str(part))]
        by_key.setdefault(".".join(parts), []).append(one)
    (key, first), *others = by_key.items()
    if first[0]["type"] == "extra_forbidden":
        *section, name = first[0]["loc"]
        what = f"key in [{'.'.join(map(str, section))}]" if section else "section"
        text = str(UnknownNameError(what, name, _keys_of_section(section)))
    else:
        text = _requirement(key, first)
    if not others:
        return text if text.endswith((".", "?")) else f"{text}."
    return f"{text.rstrip('.')} (and {len(others)} more)."


#: Parts that pydantic adds to a key, one for each type of a union.
_TYPE_OF_SEVERAL = re.compile(r"(constrained-)?(int|float|str|bool)|(literal|dict)\[.*\]")
#: pydantic's names of a value that is no section.
_OF_SECTIONS = ("model_type", "dict_type")
#: The subject of pydantic's sentences, as in "Input should be greater than 0".
_SUBJECT = re.compile(r"^\w+ should ")


def _requirement(key: str, errors: Sequence[Mapping[str, Any]]) -> str:
    """The requirement on the value of a key, and the value given."""
    first = errors[0]
    if first["type"] == "missing":
        return f"{key} is missing; 'Study definitions' in the documentation lists every key"
    if first["type"] == "value_error":
        text = str(first["msg"]).removeprefix("Value error, ")
        return f"{key} {text}" if text.startswith("must") else f"{key}: {text}" if key else text
    # Of a section pydantic names the class.
    texts = ("be a section" if one["type"] in _OF_SECTIONS else one["msg"] for one in errors)
    wanted = " or ".join(dict.fromkeys(_SUBJECT.sub("", text) for text in texts))
    value = first["input"]
    if isinstance(value, Mapping) and {"low", "high", "choices"} & value.keys():
        return f"{key} must {wanted}; it cannot be a range"
    # The value of a whole section is too long to show.
    shown = repr(value) if isinstance(value, str | int | float | bool) else type(value).__name__
    return f"{key} must {wanted}, got {shown}"
