"""The batch samplers that ``sampler.kind = "auto"`` chooses from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hpo_mab._attributes import AUTO, UNIFORM
from hpo_mab._errors import ArgumentError
from hpo_mab._registry import Named
from hpo_mab.samplers._registry import SAMPLERS, record_column, sampler_maker
from hpo_mab.search._ranges import parse_value, ranges, without_none
from hpo_mab.search._space import Component, check_options

#: The samplers that ``"auto"`` chooses from. With few trials only the first ones race.
PORTFOLIO: tuple[str | dict[str, Any], ...] = (
    "uniform",
    "mab",
    {"name": "easy_first", "kind": "curriculum", "start": 0.6, "end": 0.5},
    {"name": "trimmed", "kind": "curriculum", "start": 1.0, "end": 0.0, "trim": 0.1},
    {"name": "hard_half", "kind": "hard_mining", "presample": 2},
)


def initial_kind(kind: Named) -> Named:
    """The batch sampler of the first configurations; for ``"auto"`` it is uniform sampling."""
    return UNIFORM if kind == AUTO else kind


def parse_portfolio(entries: Sequence[Any] | None) -> dict[str, Component]:
    """The samplers of a portfolio by name, in order.

    Args:
        entries: Each is a batch sampler's name, or a table with ``kind``, its options and ``name``
            (the kind by default). None takes `PORTFOLIO`.
    """
    samplers: dict[str, Component] = {}
    for entry in PORTFOLIO if entries is None else entries:
        options = dict(entry) if isinstance(entry, Mapping) else {"kind": entry}
        if "kind" not in options:
            raise ArgumentError(f"sampler.portfolio: an entry needs a kind, got {entry!r}.")
        kind: Named = options.pop("kind")
        name = str(options.pop("name", re.split(r"[.:]", SAMPLERS.name(kind))[-1]))
        if not re.fullmatch(r"[\w-]{1,40}", name):
            raise ArgumentError(
                "sampler.portfolio: a name must be at most 40 letters, digits, '_' and '-', "
                f"got {name!r}."
            )
        if name in samplers:
            raise ArgumentError(
                f"sampler.portfolio must name each sampler once, got '{name}' twice; "
                "give an entry a name."
            )
        options = without_none(options)
        # With a range each twin would have other options, and a race would not compare samplers.
        values = {key: parse_value(f"sampler.{key}", value) for key, value in options.items()}
        if any(ranges(name, list(values.values()))):
            raise ArgumentError(f"sampler.portfolio: options of '{name}' must be constants.")
        check_options(SAMPLERS, kind, values, section="sampler")
        samplers[name] = Component(SAMPLERS.name(kind), sampler_maker(kind), options)
    if samplers.get(UNIFORM) != Component(UNIFORM, sampler_maker(UNIFORM)):
        raise ArgumentError(
            f"sampler.portfolio must hold '{UNIFORM}', the sampler of that kind without options, "
            f"got {', '.join(samplers)}."
        )
    return samplers


def uses_record(sampler: Component) -> bool:
    """Whether a sampler uses the study's record of examples."""
    return record_column(sampler.make) is not None
