"""What a study's trials saw of its examples, in the study's database, compressed."""

from __future__ import annotations

import contextlib
import json
import secrets
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from hpo_mab._attributes import RECORD_KEY
from hpo_mab._examples import COLUMNS, ExampleCounts, ExampleRecord
from hpo_mab.storage._tables import EXAMPLES, STUDIES, STUDY_ATTRIBUTES

if TYPE_CHECKING:
    from hpo_mab.training._tally import TallySums

_is_key = STUDY_ATTRIBUTES.c.key == RECORD_KEY
_number = sa.cast(STUDY_ATTRIBUTES.c.value_json, sa.BigInteger)

#: Names of tables: sums and predictions of the record, and the frozen sums that samplers use.
_SUMS, _PREDICTIONS, _FROZEN = "sums", "predictions", "frozen"

#: Bytes of a part before compression: servers refuse statements of many MiB.
_PART = 2**21
# The fastest level; higher ones hardly make the sums smaller.
_LEVEL = 1


class ExampleStore:
    """Reads and writes the record of examples of each study.

    A record has a random number that is never used again. The study holds it as its system
    attribute `RECORD_KEY`. So a study that gets the id of a deleted one has no record. Each row is
    a compressed part of a record. A record does not grow with the number of trials.

    Args:
        engine: Engine of the database of the records: the engine of the study's Optuna storage,
            whose tables are up to date.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def add(self, study_id: int, counts: ExampleCounts, *, total: int, labels: str) -> None:
        """Add the sums of some trials; the caller holds the study's lock.

        Args:
            study_id: Optuna's study id.
            counts: The sums of the trials.
            total: Training examples of the study.
            labels: Digest of their labels.
        """
        with self._engine.begin() as connection:
            number = _number_of(connection, study_id)
            if number is None:
                of_study = sa.select(STUDIES.c.study_id).where(STUDIES.c.study_id == study_id)
                if connection.scalar(of_study) is None:
                    # Deleted. On SQLite a later study may get its id, and would have its sums.
                    return
                number = _new_number(connection, study_id)
            else:
                number = _own_number(connection, study_id, number)
            known = _read_record(connection, number)
            if known is not None and known.labels != labels:
                # The labels have changed since the study began. Sums of other labels must not be
                # added; continuing the study raises an error.
                return
            counts = counts if known is None else known.counts + counts
            connection.execute(
                EXAMPLES.delete().where(EXAMPLES.c.record == number, EXAMPLES.c.name != _FROZEN)
            )
            self._insert(connection, number, counts, total, labels)

    def freeze(self, study_id: int, *, trials: int) -> ExampleRecord | None:
        """Keep the record as it is once it has ``trials`` trials, without predictions.

        The caller holds the study's lock.

        Args:
            study_id: Optuna's study id.
            trials: Fewest trials.

        Returns:
            What is kept; None as long as there are fewer trials.
        """
        with self._engine.begin() as connection:
            number = _number_of(connection, study_id)
            if number is None:
                return None
            known = _read_record(connection, number, sums=_FROZEN)
            if known is None:
                query = sa.select(EXAMPLES).where(
                    EXAMPLES.c.record == number,
                    EXAMPLES.c.name == _SUMS,
                    EXAMPLES.c.trials >= trials,
                )
                # A copy: later trials change the record, but not what samplers use.
                for row in list(connection.execute(query).mappings()):
                    connection.execute(EXAMPLES.insert(), {**row, "name": _FROZEN})
                known = _read_record(connection, number, sums=_FROZEN)
            return known

    def kept_record(self, study_id: int) -> ExampleRecord | None:
        """The record that `freeze` has kept; None without one."""
        with self._engine.connect() as connection:
            number = _number_of(connection, study_id)
            return None if number is None else _read_record(connection, number, sums=_FROZEN)

    def load(self, study_id: int) -> ExampleRecord | None:
        """The record of a study; None without one."""
        with self._engine.connect() as connection:
            number = _number_of(connection, study_id)
            return None if number is None else _read_record(connection, number)

    def copy(self, study_id: int, target: ExampleStore, target_id: int) -> None:
        """Copy a study's record to another study, which must have none."""
        with self._engine.connect() as connection:
            number = _number_of(connection, study_id)
            if number is None:
                return
            rows = _rows(connection, number)
        with target._engine.begin() as connection:
            # A separate number: trials may later be added to both studies.
            _insert_rows(connection, target_id, rows)

    def remove_orphans(self) -> None:
        """Remove the records that no study refers to: those of deleted studies."""
        orphans = (
            sa.select(EXAMPLES.c.record)
            .distinct()
            .where(EXAMPLES.c.record.not_in(sa.select(_number).where(_is_key)))
        )
        with self._engine.begin() as connection:
            # First a SELECT: on MySQL a DELETE with this condition locks every row it reads.
            for number in list(connection.scalars(orphans)):
                connection.execute(EXAMPLES.delete().where(EXAMPLES.c.record == number))

    def _insert(
        self,
        connection: sa.Connection,
        number: int,
        counts: ExampleCounts,
        total: int,
        labels: str,
    ) -> None:
        tables: list[tuple[str, NDArray[Any]]] = [(_SUMS, counts.sums)]
        if counts.predictions is not None:
            tables.append((_PREDICTIONS, counts.predictions))
        for name, table in tables:
            for part, block in enumerate(_blocks(table)):
                row = {
                    "record": number,
                    "name": name,
                    "part": part,
                    "total": total,
                    "labels": labels,
                    "trials": counts.trials,
                    "columns": table.shape[1],
                    "data": zlib.compress(_planes(block), _LEVEL),
                }
                connection.execute(EXAMPLES.insert(), row)


def _number_of(connection: sa.Connection, study_id: int) -> int | None:
    query = sa.select(STUDY_ATTRIBUTES.c.value_json).where(
        STUDY_ATTRIBUTES.c.study_id == study_id, _is_key
    )
    known = connection.scalar(query)
    return None if known is None else int(json.loads(known))


def _own_number(connection: sa.Connection, study_id: int, number: int) -> int:
    """A number that no other study has: Optuna copies a study with its attributes."""
    holders = sa.select(sa.func.count()).where(
        _is_key, STUDY_ATTRIBUTES.c.value_json == str(number)
    )
    if connection.scalar(holders) == 1:
        return number
    rows = _rows(connection, number)
    connection.execute(
        STUDY_ATTRIBUTES.delete().where(STUDY_ATTRIBUTES.c.study_id == study_id, _is_key)
    )
    return _insert_rows(connection, study_id, rows)


def _rows(connection: sa.Connection, number: int) -> list[dict[str, Any]]:
    """All rows of a record."""
    query = sa.select(EXAMPLES).where(EXAMPLES.c.record == number)
    return [dict(row) for row in connection.execute(query).mappings()]


def _insert_rows(connection: sa.Connection, study_id: int, rows: list[dict[str, Any]]) -> int:
    """Insert rows of another record for a study that has none; returns the new number."""
    new = _new_number(connection, study_id)
    for row in rows:
        connection.execute(EXAMPLES.insert(), {**row, "record": new})
    return new


def _new_number(connection: sa.Connection, study_id: int) -> int:
    number = secrets.randbits(62)
    row = {"study_id": study_id, "key": RECORD_KEY, "value_json": str(number)}
    connection.execute(STUDY_ATTRIBUTES.insert(), row)
    return number


def _read_record(
    connection: sa.Connection, number: int, *, sums: str = _SUMS
) -> ExampleRecord | None:
    query = sa.select(EXAMPLES).where(EXAMPLES.c.record == number).order_by(EXAMPLES.c.part)
    names = [sums] if sums == _FROZEN else [_SUMS, _PREDICTIONS]
    rows = list(connection.execute(query.where(EXAMPLES.c.name.in_(names))).mappings())
    if not rows:
        return None
    tables: dict[str, NDArray[Any]] = {}
    for name, kind in ((sums, np.float32), (_PREDICTIONS, np.uint32)):
        parts = [row for row in rows if row["name"] == name]
        if parts:
            data = [_from_planes(zlib.decompress(row["data"])).view(kind) for row in parts]
            tables[name] = np.concatenate(data).reshape(-1, parts[0]["columns"])
    first = rows[0]
    return ExampleRecord(
        total=int(first["total"]),
        labels=str(first["labels"]),
        counts=ExampleCounts(
            trials=int(first["trials"]),
            sums=tables[sums].reshape(-1, len(COLUMNS)),
            predictions=tables.get(_PREDICTIONS),
        ),
    )


def _blocks(table: NDArray[Any]) -> Sequence[NDArray[Any]]:
    rows = max(1, _PART // (table.itemsize * table.shape[1]))
    return [table[start : start + rows] for start in range(0, len(table), rows)]


def _planes(block: NDArray[Any]) -> bytes:
    """The first byte of every number, then the second, ...: compressed, this is half as large."""
    flat = np.ascontiguousarray(block).view(np.uint8).reshape(-1, 4)
    return np.ascontiguousarray(flat.T).tobytes()


def _from_planes(data: bytes) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.frombuffer(data, dtype=np.uint8).reshape(4, -1).T).reshape(-1)


#: Trials after which samplers use the record.
FIRST_TRIALS = 4

#: A worker writes at most this share of its time.
_SHARE = 0.01


class ExampleWriter:
    """Collects the sums of one worker's trials and adds them to the study's record.

    Writing takes at most about a hundredth of the worker's time. A killed worker loses the sums
    since its last write.

    Args:
        store: The store to write to.
        study_id: Optuna's study id.
        total: Training examples of the study.
        labels: Digest of their labels.
        lock: Returns the lock of the study's record. No thread of this process may hold it when
            `flush` is called.
        clock: Returns seconds.
    """

    def __init__(
        self,
        store: ExampleStore,
        study_id: int,
        *,
        total: int,
        labels: str,
        lock: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._study_id = study_id
        self._total = total
        self._labels = labels
        self._lock = lock
        self._clock = clock
        self._offered: dict[int, TallySums] = {}
        self._waiting: TallySums | None = None
        self._due = clock()

    def offer(self, trial_id: int, sums: TallySums) -> None:
        """Keep a trial's sums until `take_or_drop` is called for it."""
        self._offered[trial_id] = sums

    def take_or_drop(self, trial_id: int, *, take: bool) -> None:
        """Take a trial's sums, or drop them: a trial that is tried again must not count twice."""
        sums = self._offered.pop(trial_id, None)
        if sums is not None and take:
            self._waiting = sums if self._waiting is None else self._waiting + sums

    def freeze(self) -> ExampleRecord | None:
        """The record that samplers of the study use; None before enough trials have ended."""
        self.flush()
        with self._lock():
            return self.freeze_locked()

    def freeze_locked(self) -> ExampleRecord | None:
        """As `freeze`, but without `flush`; the caller holds the lock."""
        return self._store.freeze(self._study_id, trials=FIRST_TRIALS)

    def flush_if_due(self) -> None:
        """Write the sums taken since the last write if that was long enough ago."""
        if self._clock() >= self._due:
            self.flush()

    def flush(self) -> None:
        """Write the sums taken since the last write."""
        if self._waiting is None:
            return
        begun = self._clock()
        with self._lock():
            self._store.add(
                self._study_id, self._waiting.on_host(), total=self._total, labels=self._labels
            )
        self._waiting = None
        ended = self._clock()
        # After this pause the write was at most that share of the time.
        self._due = ended + (ended - begun) / _SHARE
