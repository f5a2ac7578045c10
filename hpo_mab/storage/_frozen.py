"""From rows of Optuna's tables to Optuna's trials."""

from __future__ import annotations

import datetime
import functools
import json
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial

_Value = models.TrialValueModel
_Report = models.TrialIntermediateValueModel
_row = operator.itemgetter(2)


def _part(kind: str, table: Any, row: str, name: str, number: str | None, text: str) -> Any:
    """One table of what belongs to trials, as (kind, trial_id, row, name, number, text)."""
    columns = table.c
    return sa.select(
        sa.literal(kind).label("kind"),
        columns.trial_id.label("trial_id"),
        columns[row].label("row"),
        sa.cast(columns[name], sa.Text).label("name"),
        (sa.cast(sa.null(), sa.Double) if number is None else columns[number]).label("number"),
        sa.cast(columns[text], sa.Text).label("text"),
    )


def _all_parts(condition: Callable[[Any], Any]) -> sa.CompoundSelect[Any]:
    return sa.union_all(
        *(part.where(condition(part.selected_columns.trial_id)) for part in _TABLES)
    )


_TABLES = (
    _part(
        "param",
        models.TrialParamModel.__table__,
        "param_id",
        "param_name",
        "param_value",
        "distribution_json",
    ),
    _part("value", _Value.__table__, "trial_value_id", "objective", "value", "value_type"),
    _part(
        "report",
        _Report.__table__,
        "trial_intermediate_value_id",
        "step",
        "intermediate_value",
        "intermediate_value_type",
    ),
    _part(
        "user",
        models.TrialUserAttributeModel.__table__,
        "trial_user_attribute_id",
        "key",
        None,
        "value_json",
    ),
    _part(
        "system",
        models.TrialSystemAttributeModel.__table__,
        "trial_system_attribute_id",
        "key",
        None,
        "value_json",
    ),
)

# Made once: SQLAlchemy takes longer to put such a statement together than databases to answer it.
#: What belongs to trials ``ids``, and to trials ``first`` to ``last``.
CHILDREN_OF = _all_parts(lambda column: column.in_(sa.bindparam("ids", expanding=True)))
CHILDREN_BETWEEN = _all_parts(
    lambda column: column.between(sa.bindparam("first"), sa.bindparam("last"))
)


def frozen_trials(trials: Sequence[Any], children: Iterable[Any]) -> list[FrozenTrial]:
    """Optuna's trials from rows of its tables, in the order of the former.

    Args:
        trials: Rows of Optuna's table of trials.
        children: Rows of `CHILDREN_OF` that belong to them, and maybe to other trials.
    """
    wanted: dict[int, list[Any]] = {row.trial_id: [] for row in trials}
    for child in children:
        if child[1] in wanted:
            wanted[child[1]].append(child)
    return [_frozen(row, wanted[row.trial_id]) for row in trials]


def _frozen(row: Any, children: list[Any]) -> FrozenTrial:
    # The order in which they were written, as Optuna gives them.
    children.sort(key=_row)
    parts: dict[str, dict[str, Any]] = {
        k: {} for k in ("param", "value", "report", "user", "system")
    }
    distributions: dict[str, BaseDistribution] = {}
    for kind, _, _, name, number, text in children:
        if kind == "param":
            distributions[name] = _distribution(text)
            parts[kind][name] = distributions[name].to_external_repr(number)
        elif kind == "value":
            parts[kind][name] = _Value.stored_repr_to_value(number, _Value.TrialValueType[text])
        elif kind == "report":
            reported = _Report.TrialIntermediateValueType[text]
            parts[kind][name] = _Report.stored_repr_to_intermediate_value(number, reported)
        else:
            parts[kind][name] = json.loads(text)
    return FrozenTrial(
        number=row.number,
        state=row.state,
        value=None,
        values=[value for _, value in sorted(_numbered(parts["value"]).items())] or None,
        datetime_start=_local(row.datetime_start),
        datetime_complete=_local(row.datetime_complete),
        params=parts["param"],
        distributions=distributions,
        user_attrs=parts["user"],
        system_attrs=parts["system"],
        intermediate_values=_numbered(parts["report"]),
        trial_id=row.trial_id,
    )


def _numbered(values: dict[str, Any]) -> dict[int, Any]:
    return {int(name): value for name, value in values.items()}


@functools.lru_cache(maxsize=4096)
def _distribution(text: str) -> BaseDistribution:
    return json_to_distribution(text)


def _local(moment: datetime.datetime | None) -> datetime.datetime | None:
    # Optuna writes UTC and shows local time, both without saying so.
    if moment is None:
        return None
    return moment.replace(tzinfo=datetime.UTC).astimezone().replace(tzinfo=None)
