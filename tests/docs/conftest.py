from __future__ import annotations

import contextlib
import random
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest


class _StandIn:
    """The part of Ray Tune that the page uses; runs functions in turn, in this process."""

    def __init__(
        self, trainable: Callable[..., None], *, param_space: dict[str, Any], tune_config: Any
    ) -> None:
        self._train, self._space, self._tune = trainable, param_space, tune_config

    def fit(self) -> Any:
        algorithm = getattr(self._tune, "search_alg", None)
        draws = random.Random(getattr(algorithm, "random_state", None))
        for number in range(self._tune.num_samples):
            config = {name: draw(draws) for name, draw in self._space.items()}
            _Trial.now = _Trial(number, max_t=self._tune.scheduler.max_t)
            with contextlib.suppress(SystemExit):
                self._train(config)
        best = types.SimpleNamespace(config=config)
        return types.SimpleNamespace(get_best_result=lambda: best)


class _Trial:
    now: _Trial

    def __init__(self, number: int, *, max_t: int) -> None:
        self._number, self._max_t, self._reports = number, max_t, 0

    def get_trial_id(self) -> str:
        return f"a1b2c_{self._number:05d}"

    def report(self, metrics: dict[str, float]) -> None:
        assert 0 <= metrics["accuracy"] <= 1
        self._reports += 1
        if self._reports == (2 if self._number % 3 == 0 else self._max_t):
            sys.exit(0)  # As Ray Tune does.


@pytest.fixture
def stand_in_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces Ray Tune for one example: a cluster starts slower than all examples run."""
    space = types.SimpleNamespace
    tune: Any = types.ModuleType("ray.tune")
    tune.Tuner, tune.TuneConfig = _StandIn, space
    tune.randint = lambda low, high: lambda draws: draws.randrange(low, high)
    tune.loguniform = lambda low, high: lambda draws: low * (high / low) ** draws.random()
    tune.with_parameters = lambda train, **given: lambda config: train(config, **given)
    tune.get_context = lambda: _Trial.now
    tune.report = lambda metrics: _Trial.now.report(metrics)
    schedulers: Any = types.ModuleType("ray.tune.schedulers")
    schedulers.ASHAScheduler = space
    search: Any = types.ModuleType("ray.tune.search")
    search.BasicVariantGenerator = space
    ray: Any = types.ModuleType("ray")
    ray.tune = tune
    for module in (ray, tune, schedulers, search):
        monkeypatch.setitem(sys.modules, module.__name__, module)
