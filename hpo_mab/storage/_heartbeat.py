"""A sign of life for a trial, so that workers elsewhere know it is still run."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from optuna.storages import RDBStorage

_beating: set[int] = set()


def beating() -> frozenset[int]:
    """Ids of the trials that this process runs now."""
    return frozenset(_beating)


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
    _beating.add(trial_id)
    thread.start()
    try:
        yield
    finally:
        _beating.discard(trial_id)
        stop.set()
        thread.join()
