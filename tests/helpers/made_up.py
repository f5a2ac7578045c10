"""Learning curves, trials and studies that were never run, of a known shape."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo_mab.advantage import PairedCurves
from hpo_mab.search import make_spec
from hpo_mab.storage import StudyRun, TrialRun
from hpo_mab.training import Evaluation

EXAMPLES = 8_000
EVALUATIONS = 8


def definition(**sections: Any) -> dict[str, Any]:
    """A definition as a study stores it."""
    budget = {"epochs": 1, "evaluations": EVALUATIONS}
    return make_spec({"name": "tiny", "budget": budget, **sections}).model_dump(mode="json")


def point(index: int, **changes: float | None) -> Evaluation:
    """A point of a learning curve."""
    values: dict[str, Any] = {
        "steps": 10 * index,
        "examples": 30 * index,
        "seconds": 0.5 * index,
        "sampler_seconds": 0.1 * index,
        "accuracy": 0.5,
        "loss": 2.0 / index,
        "train_loss": 2.5 / index,
        "learning_rate": 0.1,
        "reward_rate": 0.4,
    }
    return Evaluation(index=index, **{**values, **changes})


def trial(
    accuracies: Sequence[float],
    *,
    number: int = 0,
    slot: int | None = None,
    state: str = "complete",
    examples: int = EXAMPLES,
    seconds_per_example: float = 1e-3,
    sampler_share: float = 0.05,
    params: dict | None = None,
    paired: bool = True,
    rewards: float | None = None,
) -> TrialRun:
    """A trial with these accuracies at equally spaced budgets, the last at ``examples``."""
    curve = []
    for index, accuracy in enumerate(accuracies, start=1):
        done = round(examples * index / len(accuracies))
        curve.append(
            Evaluation(
                index=index,
                steps=done // 100,
                examples=done,
                seconds=done * seconds_per_example,
                sampler_seconds=done * seconds_per_example * sampler_share,
                accuracy=float(accuracy),
                loss=1.0 - float(accuracy),
                train_loss=1.1 - float(accuracy),
                learning_rate=0.1,
                reward_rate=None if rewards is None else rewards / index,
                concentration=None if rewards is None else 0.1 + 0.01 * index,
            )
        )
    return TrialRun(
        number=number,
        slot=number if slot is None else slot,
        state=state,
        params=params or {},
        value=curve[-1].accuracy if state == "complete" else None,
        paired=paired,
        curve=tuple(curve),
    )


def run(trials: Sequence[TrialRun], *, arm: str, seed: int = 0, name: str = "") -> StudyRun:
    return StudyRun(
        name=name or f"{arm}-{seed}",
        arm=arm,
        seed=seed,
        trial_examples=EXAMPLES,
        spec={"data": {"name": "made_up"}, "model": {"name": "small_cnn"}},
        trials=tuple(trials),
    )


def curve(budgets: np.ndarray, ceiling: float, scale: float) -> np.ndarray:
    """A power-law learning curve from 0.1 to ``ceiling``."""
    return 0.1 + (ceiling - 0.1) * (1.0 - (1.0 + budgets / scale) ** -0.8)


def study(
    arm: str,
    seed: int,
    *,
    trials: int = 12,
    paired: int = 8,
    speed: float = 1.0,
    lift: float = 0.0,
    noise: float = 0.005,
    pruned: int = 2,
    seconds_per_example: float = 1e-3,
    sampler_share: float = 0.05,
    rewards: float | None = None,
) -> StudyRun:
    """A study whose configurations depend on seed and slot, whose noise on the arm as well.

    Args:
        arm: Name of the arm.
        seed: Seed of the study.
        trials: Number of trials.
        paired: Number of first trials that every arm has.
        speed: Budget every curve is ahead by, as a factor.
        lift: Accuracy added everywhere.
        noise: Standard deviation of each accuracy.
        pruned: Number of last trials that are stopped at half of their budget.
        seconds_per_example: Training seconds per example.
        sampler_share: Share of them spent in the sampler.
        rewards: Reward rate at the first evaluation.
    """
    own = np.random.default_rng([seed, zlib.crc32(arm.encode())])
    budgets = EXAMPLES * np.arange(1, EVALUATIONS + 1) / EVALUATIONS
    made = []
    for slot in range(trials):
        shared = np.random.default_rng([seed, slot])
        ceiling, scale = shared.uniform(0.6, 0.95), np.exp(shared.normal(7.0, 0.5))
        accuracy = curve(speed * budgets, ceiling, scale) + lift
        accuracy = np.clip(accuracy + noise * own.standard_normal(EVALUATIONS), 0.0, 1.0)
        stopped = slot >= trials - pruned
        made.append(
            trial(
                accuracy[: EVALUATIONS // 2] if stopped else accuracy,
                number=slot,
                state="pruned" if stopped else "complete",
                examples=EXAMPLES // 2 if stopped else EXAMPLES,
                seconds_per_example=seconds_per_example,
                sampler_share=sampler_share,
                params={"lr": float(scale)}
                | ({"sampler.memory": 50 + slot} if rewards is not None else {}),
                paired=slot < paired,
                rewards=rewards,
            )
        )
    return run(made, arm=arm, seed=seed)


def comparison(*, seeds: int = 5, **mab: float) -> list[StudyRun]:
    """Uniform and a bandit arm, whose differences are given, over several seeds."""
    options = {"speed": 1.5, "rewards": 0.5, "seconds_per_example": 1.03e-3} | mab
    return [
        run
        for seed in range(seeds)
        for run in (study("uniform", seed), study("mab", seed, **options))  # type: ignore[arg-type]
    ]


def accelerated(factor: float, *, scramble: float = 0.0, pairs: int = 30) -> PairedCurves:
    """Pairs of uniform curves that rise with log t and of a bandit's, ``factor`` times as fast.

    ``scramble`` is noise that a bandit-trained configuration keeps until the end.
    """
    rng = np.random.default_rng(3)
    budgets = np.arange(1.0, 9.0) * 1000
    quality = np.linspace(0.3, 0.5, pairs)[:, None]

    def curve(at: np.ndarray) -> np.ndarray:
        return quality * (1 + np.log(at / 1000) / 3) + rng.normal(0, 0.004, (pairs, 8))

    uniform = curve(budgets)
    bandit = curve(budgets * factor) + rng.normal(0, scramble, (pairs, 1))
    return PairedCurves(budgets=budgets, arm=bandit, reference=uniform)


_STATES = {
    "c": TrialState.COMPLETE,
    "p": TrialState.PRUNED,
    "r": TrialState.RUNNING,
    "w": TrialState.WAITING,
    "f": TrialState.FAIL,
}


def trials_of(*described: str) -> list[FrozenTrial]:
    """Trials from texts: state, slot, and what it is, e.g. ``c3 twin`` or ``f0 lost``."""
    made = []
    for number, text in enumerate(described):
        place, *marks = text.split()
        attrs: dict[str, Any] = {f"hpo_mab:{mark}": True for mark in marks}
        if "twin" in marks:
            attrs["hpo_mab:twin_of"] = int(place[1:])
        if place[1:]:
            attrs["hpo_mab:slot"] = int(place[1:])
        state = _STATES[place[0]]
        value = 0.5 if state == TrialState.COMPLETE else None
        trial = optuna.create_trial(state=state, value=value, user_attrs=attrs)
        trial.number = number
        made.append(trial)
    return made


def continued_of(*described: str) -> list[FrozenTrial]:
    """Trials from texts; ``p1 continues 0`` continues trial 0, whose slot it has."""
    trials = trials_of(*(text.partition(" continues ")[0] for text in described))
    for trial, text in zip(trials, described, strict=True):
        _, mark, number = text.partition(" continues ")
        if mark:
            trial.user_attrs["hpo_mab:promotes"] = int(number)
    return trials


def marked(trials: list[FrozenTrial], **attrs: dict[int, Any]) -> list[FrozenTrial]:
    """The trials with further attributes, each by the number of its trial."""
    for key, values in attrs.items():
        for number, value in values.items():
            trials[number].set_user_attr(f"hpo_mab:{key}", value)
    return trials
