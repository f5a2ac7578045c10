"""What is known of a training run at one point of its budget."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One point of a learning curve.

    Attributes:
        index: Position among the run's evaluations, from 1.
        steps: Optimiser steps done.
        examples: Training examples processed, ``steps * batch size``.
        seconds: Training seconds spent, the sampler's own cost included, evaluation excluded.
        sampler_seconds: The part of ``seconds`` spent drawing batches and learning from losses.
        accuracy: Validation accuracy, in [0, 1].
        loss: Mean validation cross-entropy, in nats.
        train_loss: Mean training loss of the batches since the previous evaluation, in nats.
            Under a bandit these batches are harder than the data.
        learning_rate: Learning rate of the last step.
        reward_rate: Share of the draws since the previous evaluation that were rewarded; None for
            samplers without rewards.
        concentration: Share of all draws so far that fell on the most-drawn tenth of the examples
            (0.1 is uniform); None where the sampler does not count draws.
        averaged: Whether the evaluated weights are the exponential moving average of the trained
            ones.
    """

    index: int
    steps: int
    examples: int
    seconds: float
    sampler_seconds: float
    accuracy: float
    loss: float
    train_loss: float
    learning_rate: float
    reward_rate: float | None = None
    concentration: float | None = None
    averaged: bool = False
