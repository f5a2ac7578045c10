"""A sign of life for a trial, so that workers elsewhere know it is still run."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from optuna.storages import RDBStorage

_held: set[tuple[str, int]] = set()


def hold(storage: RDBStorage, trial_id: int) -> None:
    """Note that this process has a trial, from its claim until its end is stored.

    Args:
        storage: Where the trial lives.
        trial_id: Optuna's trial id.
    """
    _held.add(_key(storage, trial_id))


def release(storage: RDBStorage, trial_id: int) -> None:
    """Note that this process has a trial no longer, however that came."""
    _held.discard(_key(storage, trial_id))


def is_held(storage: RDBStorage, trial_id: int) -> bool:
    """Whether this process has a trial."""
    return _key(storage, trial_id) in _held


def _key(storage: RDBStorage, trial_id: int) -> tuple[str, int]:
    return str(storage.engine.url), trial_id


@contextlib.contextmanager
def heartbeat(storage: RDBStorage, trial_id: int) -> Iterator[None]:
    """Record Optuna's heartbeat of a trial for as long as the context lasts.

    Unlike Optuna's own thread it outlives a database that is away for a while.

    Args:
        storage: Where the trial lives.
        trial_id: Optuna's trial id.
    """
    stop = threading.Event()
    interval = float(storage.get_heartbeat_interval() or 0)

    def beat() -> None:
        while not stop.wait(interval):
            # The training goes on without a database; the next beat may get through.
            with contextlib.suppress(Exception):
                storage.record_heartbeat(trial_id)
        storage.remove_session()

    thread = threading.Thread(target=beat, name=f"heartbeat-{trial_id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
