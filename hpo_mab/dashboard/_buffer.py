"""What ``optuna_dashboard`` writes to a study, in one transaction.

Optuna commits each attribute by itself, at milliseconds to tens of milliseconds each, and a study's
figures and notes are hundreds of them. Together they take about as long as one, and a reader never
sees half of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

if TYPE_CHECKING:
    import plotly.graph_objects as go

_CHUNK = 500


class DashboardBuffer:
    """Collects notes and figures of one study; `flush` writes them.

    Args:
        known: The study's system attributes as they are.
    """

    def __init__(self, known: Mapping[str, Any]) -> None:
        self._study = _StandIn(dict(known))
        self._trial_notes: dict[str, Any] = {}

    def __len__(self) -> int:
        """Number of attributes that wait to be written."""
        return len(self._trial_notes) + len(self._study.written)

    def has_trial_note(self, trial_id: int) -> bool:
        """Whether a trial has a note, ours or a user's."""
        return f"dashboard:{trial_id}:note_ver" in self._study.known

    def study_note(self) -> str:
        """The study's note; empty if there is none."""
        from optuna_dashboard import get_note

        return str(get_note(self._study))

    def save_study_note(self, text: str) -> None:
        """Replace the study's note, in Markdown."""
        from optuna_dashboard import save_note

        save_note(self._study, text)

    def save_trial_note(self, trial_id: int, text: str) -> None:
        """Write the first note of a trial, in Markdown."""
        from optuna_dashboard import save_note

        # It looks through all attributes for remains of longer notes: show it none.
        trial = _StandIn({}, trial_id)
        save_note(trial, text)
        self._trial_notes.update(trial.written)

    def save_figure(self, name: str, figure: go.Figure) -> None:
        """Save a figure in place of an earlier one of that name."""
        from optuna_dashboard import save_plotly_graph_object

        save_plotly_graph_object(self._study, figure, graph_object_id=name)

    def save(self, key: str, value: Any) -> None:
        """Set one attribute of our own."""
        self._study.set_study_system_attr(0, key, value)

    def flush(self, engine: sa.Engine, study_id: int) -> None:
        """Write everything in one transaction."""
        table = sa.Table("study_system_attributes", sa.MetaData(), autoload_with=engine)
        rows = [
            {"study_id": study_id, "key": key, "value_json": json.dumps(value)}
            for key, value in {**self._trial_notes, **self._study.written}.items()
        ]
        with engine.begin() as connection:
            for start in range(0, len(rows), _CHUNK):
                chunk = rows[start : start + _CHUNK]
                keys = [row["key"] for row in chunk]
                connection.execute(
                    table.delete().where(table.c.study_id == study_id, table.c.key.in_(keys))
                )
                connection.execute(table.insert(), chunk)
        self._trial_notes.clear()
        self._study.written.clear()


def trial_ids(engine: sa.Engine, study_id: int) -> dict[int, int]:
    """Optuna's id of each trial of a study, by number."""
    table = sa.Table("trials", sa.MetaData(), autoload_with=engine)
    query = sa.select(table.c.number, table.c.trial_id).where(table.c.study_id == study_id)
    with engine.connect() as connection:
        return {row.number: row.trial_id for row in connection.execute(query)}


class _StandIn:
    """Study or trial and storage at once, with the members that ``optuna_dashboard`` uses.

    Args:
        known: The study's system attributes.
        trial_id: Id of the trial it stands for; None stands for the study.
    """

    def __init__(self, known: dict[str, Any], trial_id: int | None = None) -> None:
        self.known = known
        self.written: dict[str, Any] = {}
        self._storage = self.storage = self.study = self
        self._study_id = 0
        self._trial_id = trial_id

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self.known

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self.known[key] = self.written[key] = value
