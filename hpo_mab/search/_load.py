"""Study definitions from TOML files, with the command line's overrides."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic

from hpo_mab._errors import HpoMabError, SpecError, UnknownNameError
from hpo_mab.search._spec import StudySpec

_UNITS = ("epochs", "steps", "examples")
_KINDS = {"data": "name", "model": "name", "optimizer": "name", "sampler": "kind", "pruner": "kind"}


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
            it also has.

    Raises:
        SpecError: No such file, not TOML, or a value that cannot be used; names file and key.
    """
    path = _find(source)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{source}: not valid TOML: {error}") from None
    except OSError as error:
        raise SpecError(f"{source}: cannot be read: {error.strerror}.") from None
    try:
        for key, value in (overrides or {}).items():
            _override(raw, key, value)
        return make_spec(raw)
    except HpoMabError as error:
        raise SpecError(f"{source}: {error}") from None


def make_spec(raw: Mapping[str, Any]) -> StudySpec:
    """Check a definition given as nested mappings.

    Raises:
        SpecError: A key or value that cannot be used.
        UnknownNameError: An unknown data set, network, optimiser, sampler, pruner or option.
    """
    try:
        spec = StudySpec.model_validate(raw)
    except pydantic.ValidationError as error:
        raise SpecError(_message(error)) from None
    # Imported late, for it brings torch: misspelt keys are told at once, and so are names of files.
    from hpo_mab.search._check import check_names

    check_names(spec)
    return spec


def _find(source: str | Path) -> Path:
    path = Path(source)
    if path.suffix == ".toml" or path.exists():
        if path.is_dir():
            raise SpecError(f"{source} is a folder; name the definition (.toml) in it.")
        if not path.is_file():
            raise SpecError(f"{source}: no such file. Definitions: {', '.join(builtin_names())}.")
        return path
    builtin = _builtin_paths()
    if str(source) not in builtin:
        raise SpecError(str(UnknownNameError("study definition", str(source), builtin)))
    return builtin[str(source)]


def _builtin_paths() -> dict[str, Path]:
    package = Path(__file__).resolve().parents[1]
    installed = {path.stem: path for path in (package / "_studies").glob("*.toml")}
    # A checkout keeps each definition beside its records.
    checkout = {
        path.parent.name: path for path in (package.parent / "studies").glob("*/study.toml")
    }
    return installed or checkout


def _override(raw: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    table = raw
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise SpecError(f"'{key}' cannot be set: '{section}' is not a section.")
    if sections == ["budget"] and last in _UNITS:
        for unit in _UNITS:
            table.pop(unit, None)
    if len(sections) == 1 and _KINDS.get(sections[0]) == last and table.get(last) != value:
        from hpo_mab.search._check import valid_options

        kept = valid_options(sections[0], value)
        for option in set(table) - kept:
            del table[option]
    table[last] = value


def _message(error: pydantic.ValidationError) -> str:
    first, *others = error.errors(include_url=False)
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        *section, key = first["loc"]
        what = f"key in [{'.'.join(map(str, section))}]" if section else "section"
        text = str(UnknownNameError(what, str(key), _keys_at(section)))
    else:
        text = _told(first)
        text = f"{where}: {text}" if where else text
    more = f" (and {len(others)} more)." if others else "."
    return text if text.endswith("?") and not others else text.rstrip(".") + more


def _told(error: Mapping[str, Any]) -> str:
    if error["type"] == "missing":
        return "is missing; 'Study definitions' in the documentation lists every key."
    if error["type"].startswith(("greater_than", "less_than")):
        return f"{error['msg']}, got {error['input']!r}"
    text = str(error["msg"]).removeprefix("Value error, ")
    # Of a whole section there is too much to show.
    plain = isinstance(error["input"], str | int | float | bool)
    return f"{text}, got {error['input']!r}" if text.startswith("Input should") and plain else text


def _keys_at(section: list[int | str]) -> list[str]:
    model: Any = StudySpec
    for part in section:
        field = model.model_fields.get(part)
        if field is None or not hasattr(field.annotation, "model_fields"):
            return []
        model = field.annotation
    return list(model.model_fields)
