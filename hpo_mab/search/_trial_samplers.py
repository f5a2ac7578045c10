"""Which batch sampler a trial has: that of its objective, of a twin, or of a race."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import optuna

from hpo_mab._attributes import AUTO, SAMPLER_KEY, TWIN_KEY, UNIFORM, USED_RECORD_KEY
from hpo_mab._errors import ArgumentError, check_integer, require
from hpo_mab._registry import Named
from hpo_mab._stored_settings import TotalBudget
from hpo_mab.search._choice import race_unit
from hpo_mab.search._portfolio import parse_portfolio, uses_record
from hpo_mab.search._race import Race
from hpo_mab.search._space import Configuration
from hpo_mab.search._workload import Workload
from hpo_mab.storage._examples import ExampleWriter


class TrialSamplers:
    """The batch samplers of an objective's trials.

    ``kind`` is the objective's, ``initial_name`` is of the sampler of the first configurations.
    ``data`` is the digest that a race keeps. `hpo_mab.search.TrainingObjective` describes the other
    arguments.
    """

    def __init__(
        self,
        kind: Named,
        initial_name: str,
        *,
        initial: int,
        pilot: bool,
        portfolio: Sequence[Any] | None,
        trials: int | None,
        total: str | None,
        data: str,
    ) -> None:
        check_integer("initial", initial, 0)
        if trials is not None:
            check_integer("trials", trials, 1)
        if total is not None:
            TotalBudget.parse(total)  # Raises if it is no budget.
        auto = kind == AUTO
        holds_no_race = f"None for sampler '{initial_name}', which holds no race"
        require(auto or portfolio is None, "portfolio", holds_no_race, portfolio)
        require(not pilot or initial > 0, "initial", "at least 1 with pilot", initial)
        # Uniform sampling would be paired with itself, and "auto" makes its own pairs.
        require(not pilot or initial_name != UNIFORM, "pilot", f"False for '{kind}'", pilot)
        #: The samplers of ``"auto"`` by name; empty for another kind.
        self.portfolio = parse_portfolio(portfolio) if auto else {}
        #: The race of ``"auto"``; None for another kind.
        self.race: Race | None = None
        if auto:
            judged = race_unit(total)
            self.race = Race(
                self.portfolio, initial=initial, trials=trials, judged=judged, data=data
            )
        self.has_twins = pilot or auto

    def of_trial(self, trial: optuna.trial.Trial, configuration: Configuration) -> Configuration:
        """The configuration with the trial's batch sampler; stores its name with the trial."""
        # A twin, a retry and a promotion have the name already.
        name = trial.user_attrs.get(SAMPLER_KEY)
        if name is None and self.race is not None:
            name = self.race.sampler(trial.study)
        name = name or configuration.sampler.name
        trial.set_user_attr(SAMPLER_KEY, name)
        return self.of_name(name, configuration)

    def of_name(self, name: str, configuration: Configuration) -> Configuration:
        """The configuration with the batch sampler whose name a trial has stored."""
        if name in self.portfolio:
            return dataclasses.replace(configuration, sampler=self.portfolio[name])
        if name == UNIFORM:
            return configuration.with_sampler(UNIFORM)
        own = configuration.sampler.name
        known = ", ".join(self.portfolio) or own
        argument = "portfolio" if self.portfolio else "sampler"
        wanted = f"one with the trial's sampler '{name}'" if self.portfolio else f"'{name}'"
        require(name == own, argument, f"{wanted}, as in the objective that made it", known)
        return configuration

    def queue_twins(self, study: optuna.Study, writer: ExampleWriter | None) -> bool:
        """Queue the next twins of the race; see `hpo_mab.search._race.Race.advance`.

        ``writer`` writes the study's record of examples; None if it has none.
        """
        if self.race is None:
            return False
        has_record = None if writer is None else lambda: writer.freeze_locked() is not None
        return self.race.advance(study, has_record=has_record)

    def with_record(
        self,
        trial: optuna.trial.Trial,
        configuration: Configuration,
        workload: Workload,
        writer: ExampleWriter | None,
    ) -> Configuration:
        """The configuration with the study's record of examples, if its sampler uses that."""
        if not uses_record(configuration.sampler):
            return configuration
        if writer is None:
            if TWIN_KEY in trial.user_attrs or trial.user_attrs.get(USED_RECORD_KEY):
                raise ArgumentError(
                    f"Trial {trial.number} needs the study's record of examples for sampler "
                    f"'{configuration.sampler.name}': continue the study with hpo-mab run and "
                    "training.examples = true."
                )
            return configuration
        if workload.example_record is None:
            workload.example_record = writer.freeze()
        # A retried trial uses the record only if its first attempt did.
        used = trial.user_attrs.get(USED_RECORD_KEY, workload.example_record is not None)
        trial.set_user_attr(USED_RECORD_KEY, used)
        return dataclasses.replace(configuration, difficulty=used)
