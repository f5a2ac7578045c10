"""What is called while a study runs, such as a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from hpo_mab._errors import require

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial


class Observer:
    """Is called while a study runs; subclasses override what they need.

    An error in `ended` or `running` ends the run; one in `testing` leaves the best trial without a
    test accuracy. Where other processes train as well, methods may be called in another thread, and
    `running` about twice a second.

    Examples:
        >>> from hpo_mab.search import Observer
        >>> class Printer(Observer):
        ...     def running(self, shares):
        ...         print(*(f"trial {number}: {share:.0%}" for number, share in shares.items()))
        >>> Printer().running({0: 0.25})
        trial 0: 25%
    """

    def ended(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """A trial of the study has ended."""

    def running(self, shares: Mapping[int, float]) -> None:
        """Trials are running; ``shares`` of their budgets are spent, by trial number."""

    def testing(self, shares: Mapping[int, float]) -> None:
        """The best trial is trained again for its test accuracy; ``shares`` as in `running`."""


class _Function(Observer):
    """Calls a function after each trial."""

    def __init__(self, function: Callable[[optuna.Study, FrozenTrial], None]) -> None:
        self._function = function

    def ended(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._function(study, trial)


#: A function is called with study and trial after each trial.
OnTrial = Observer | Callable[["optuna.Study", "FrozenTrial"], None]

#: Does nothing.
NOBODY = Observer()


def observer_of(on_trial: OnTrial | None) -> Observer:
    """An observer that calls what was given.

    Raises:
        ArgumentError: It is neither an observer nor a function.
    """
    if on_trial is None:
        return NOBODY
    known = callable(on_trial) and not isinstance(on_trial, type)
    known = known or isinstance(on_trial, Observer)
    require(known, "on_trial", "a function or an Observer", on_trial)
    return on_trial if isinstance(on_trial, Observer) else _Function(on_trial)
