"""Every definition and every command line works or raises an error of the package."""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpo_mab import models, samplers
from hpo_mab._errors import HpoMabError
from hpo_mab.cli import main
from hpo_mab.data import ImageSplits
from hpo_mab.search import StudySpec, load_spec, make_spec
from hpo_mab.search._prepare import NAMED, make_objective
from hpo_mab.search._pruners import PRUNERS, study_pruner
from hpo_mab.training._optimizers import OPTIMIZERS

_QUICK = settings(
    max_examples=150,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
_FULL: dict[str, Any] = load_spec("digits").model_dump(mode="json")
_KEYS = sorted(
    {
        "low", "high", "log", "step", "type", "choices", "name", "kind", "lr", "memory", "prior",
        *_FULL,
        *(key for section in _FULL.values() if isinstance(section, dict) for key in section),
    }
)  # fmt: skip

_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["mab", "uniform", "sgd", "digits", "none", "auto", "30m", "cpu", "median"]),
)
_values = st.recursive(
    _scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(_KEYS), inner, max_size=4)
    ),
    max_leaves=8,
)


def _paths(tree: Any, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(tree, dict):
        return [prefix]
    inner = [path for key, value in tree.items() for path in _paths(value, (*prefix, key))]
    return [*inner, *([prefix] if prefix else [])]


@contextlib.contextmanager
def _refused_in_one_line() -> Iterator[None]:
    caught: HpoMabError | None = None
    try:
        yield
    except HpoMabError as error:
        caught = error
    assert len(str(caught).splitlines()) == 1, str(caught)


def _make(raw: Any) -> StudySpec | None:
    with _refused_in_one_line():
        return make_spec(raw)
    return None


@_QUICK
@given(st.sampled_from(_paths(_FULL)), _values, st.sampled_from(["set", "drop", "add"]))
def test_a_valid_definition_with_one_change_is_refused_in_words(
    path: tuple[str, ...], value: Any, how: str
) -> None:
    raw = copy.deepcopy(_FULL)
    table = raw
    for key in path[:-1]:
        table = table[key]
    if how == "drop":
        del table[path[-1]]
    else:
        table[path[-1] if how == "set" else "further"] = value
    spec = _make(raw)
    if spec is not None and how == "drop":
        # What was accepted can be written down and read again.
        assert make_spec(spec.model_dump(mode="json")) == spec


_JSON: Sequence[Any] = (
    None, True, -1, 0.5, "none", [], [[1]], {}, {"low": 1, "high": 2}, {"choices": ["a", 2]}, 1e300,
)  # fmt: skip

_NAMED: dict[str, Sequence[str]] = {
    "data": ["digits", "image_folder"],
    "model": tuple(models.NETWORKS),
    "optimizer": tuple(OPTIMIZERS),
    "sampler": samplers.available(),
    "pruner": tuple(PRUNERS),
    "search": ["gp", "qmc", "random", "tpe"],
}


def _definitions() -> Iterator[tuple[str, dict[str, Any]]]:
    """A valid definition with one key of another type, for every key and type."""
    for section, model in StudySpec.model_fields.items():
        for value in _JSON:
            yield f"{section} = {value}", {**_FULL, section: value}
            for key in getattr(model.annotation, "model_fields", {}):
                table = {**_FULL.get(section, {}), key: value}
                yield f"{section}.{key} = {value}", {**_FULL, section: table}
    for section, kinds in _NAMED.items():
        key = next(iter(StudySpec.model_fields[section].annotation.model_fields))  # type: ignore
        for kind in kinds:
            for option in sorted(_options(section, kind)):
                for value in _JSON:
                    table = {key: kind, option: value}
                    yield f"{section} {kind}: {option} = {value}", {**_FULL, section: table}


def _options(section: str, kind: str) -> set[str]:
    return set(NAMED[section].options(kind))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_key_of_another_type_is_refused_in_words(splits: ImageSplits) -> None:
    accepted, refused, broken, made = 0, 0, [], set()
    for what, raw in _definitions():
        try:
            spec = make_spec(raw)
            if spec.data.name == "digits" and not _is_large(spec):
                # An objective does not depend on these sections, but for two facts.
                read = spec.model_dump_json(exclude={"name", "search", "pruner", "compare"})
                key = (read, spec.search.initial, spec.has_pilot)
                if key not in made:
                    make_objective(spec, splits)
                    made.add(key)
                study_pruner(spec, {})
            accepted += 1
        except HpoMabError as error:
            refused += 1
            broken += [what] if "\n" in str(error) else []
        except Exception as error:
            broken.append(f"{what}: {error!r}")
    assert broken == []
    assert refused > 1000
    assert accepted > 100


def _is_large(spec: StudySpec) -> bool:
    sizes = [value for value in spec.model.options.values() if isinstance(value, int)]
    return max(sizes, default=0) > 1000


_WORDS = [
    "--trials", "--epochs", "--set", "--budget", "--device", "--seed", "--workers", "--sampler",
    "--pruner", "--model", "--batch-size", "--data", "--ray", "--slots", "--gpus-per-worker",
    "--name", "0", "-1", "nan", "1e400", "optimizer.lr=nan", "optimizer=3", "budget.trials=true",
    "a.b.c=1", "=", ".=1", "sampler.memory={low=1}", "data.name=[1]", "model.width=1e99", "--",
]  # fmt: skip


# The command line ends the process at the next Ctrl-C.
@pytest.mark.usefixtures("python_handler")
@settings(_QUICK, max_examples=80)
@given(
    words=st.lists(
        st.one_of(
            st.sampled_from(_WORDS),
            st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
        ),
        max_size=5,
    )
)
def test_random_command_lines_end_without_a_traceback(
    words: list[str], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    monkeypatch.chdir(folder)
    # A definition that is not there: nothing valid can start to train.
    monkeypatch.setattr(sys, "argv", ["hpo-mab", "run", "absent.toml", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    helped = {"--help", "-h"} & set(words)
    assert caught.value.code == 2 or helped
    assert list(Path(folder).iterdir()) == []


@settings(_QUICK, max_examples=120)
@given(st.sampled_from([".".join(path) for path in _paths(_FULL)]), st.text(max_size=12))
def test_random_assignments_are_refused_in_words(key: str, text: str) -> None:
    from hpo_mab.cli import _options as options

    with _refused_in_one_line():
        load_spec("digits", dict([options._assignment(f"{key}={text}")]))
