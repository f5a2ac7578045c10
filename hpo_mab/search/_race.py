"""``sampler.kind = "auto"``: batch samplers race on paired configurations, and one is chosen.

The first configurations are trained under uniform sampling. Each then gets *twins*: trials with its
slot, parameters and seed, under the other samplers of the portfolio. Twins are never pruned. The
race is sequential halving: after each round the worse half of the samplers leaves. A sampler also
leaves if it is not ahead of uniform sampling, or no further pair could show that. The last one is
adopted if it is shown to be ahead; uniform sampling is never dropped.

A sampler is adopted only by the signed-rank test over its pairs at the end. If samplers race at
equal seconds, a second test, at equal seconds, must agree. The error of a test is `ERROR` divided
by the number of samplers that entered (Bonferroni): any of them may reach the end. So the
probability that ``auto`` adopts a sampler that is not better than uniform sampling is at most
`ERROR`. The bound is exact where differences of pairs are symmetric about their centre. Samplers
that leave early can only lower the error.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Self

import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo_mab._attributes import (
    CHOICE_KEY,
    EVIDENCE_KEY,
    EXAMPLES_KEY,
    GIVEN_KEY,
    RACE_KEY,
    RESUMED_KEY,
    SAMPLER_KEY,
    SECONDS_KEY,
    SLOT_KEY,
    TWIN_KEY,
    UNIFORM,
)
from hpo_mab._errors import ArgumentError, require
from hpo_mab._plan import Plan
from hpo_mab._results import Results
from hpo_mab.advantage import Estimate, Evidence
from hpo_mab.advantage._signed_rank import fewest_pairs
from hpo_mab.pruners import AdvantagePruner
from hpo_mab.pruners._evidence import EvidenceKeeper
from hpo_mab.search._choice import Choice, PairedTrial, Standing, stored_choice
from hpo_mab.search._portfolio import uses_record
from hpo_mab.search._space import Component
from hpo_mab.search._twins import queue_twin
from hpo_mab.storage._examples import FIRST_TRIALS

#: Highest probability of adopting a sampler that is not better than uniform sampling.
ERROR = 0.05
#: Most twins of a race, as a share of the study's trials; its configurations have the same bound.
SHARE = 0.5
#: Most pairs of the sampler that reaches the end of a race.
MOST = 24


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RacePlan:
    """Samplers, slots and pairs of a race; stored with the study, so that all its workers use it.

    Attributes:
        challengers: The samplers that enter, besides uniform sampling.
        first: The first slot that is raced. Where a challenger uses the study's record of examples,
            earlier trials measure it.
        pairs: Pairs of a challenger that reaches the end.
        judged: What samplers spend equally, ``"examples"`` or ``"seconds"``.
    """

    challengers: tuple[str, ...]
    first: int
    pairs: int
    judged: Literal["examples", "seconds"] = "examples"

    @classmethod
    def make(
        cls,
        challengers: Mapping[str, Component],
        *,
        trials: int | None,
        initial: int = 0,
        judged: Literal["examples", "seconds"] = "examples",
    ) -> Self | None:
        """The longest race that fits into a study; None if none does.

        ``challengers`` are the samplers besides uniform sampling, in order. With few trials only
        the first ones enter. If the study's ``trials`` are not known, ``initial``, its number of
        configurations at the start, limits the race.
        """
        names = tuple(challengers)
        limit = initial if trials is None else int(SHARE * trials)
        # As many challengers as possible, and then as many pairs.
        for count in range(len(names), 0, -1):
            entrants = names[:count]
            first = FIRST_TRIALS if any(uses_record(challengers[n]) for n in entrants) else 0
            for pairs in range(min(limit - first, MOST), 0, -1):
                plan = cls(challengers=entrants, first=first, pairs=pairs, judged=judged)
                # With fewer pairs no result is significant, and after one pair chance decides.
                enough = pairs >= max(fewest_pairs(plan.error), 2 * len(plan.rounds))
                if enough and (trials is None or plan.twins <= limit):
                    return plan
        return None

    @property
    def rounds(self) -> tuple[tuple[int, int], ...]:
        """Each round's number of challengers, and the pairs that they have at its end."""
        # A round keeps half of the challengers, rounded up; each adds equally many pairs.
        counts = [len(self.challengers)]
        while counts[-1] > 1:
            counts.append(-(-counts[-1] // 2))
        return tuple(
            (count, self.pairs * number // len(counts)) for number, count in enumerate(counts, 1)
        )

    @property
    def twins(self) -> int:
        """Twins of the race, at most."""
        # A challenger trains one twin for each pair that its rounds add.
        before = (0, *(end for _, end in self.rounds))
        return sum(
            count * (end - start)
            for (count, end), start in zip(self.rounds, before[:-1], strict=True)
        )

    @property
    def end(self) -> int:
        """The first slot after those that are raced."""
        return self.first + self.pairs

    @property
    def error(self) -> float:
        """Error of each challenger's interval, on each side: `ERROR` shared among them."""
        return ERROR / len(self.challengers)


def _pairs(
    trials: Sequence[FrozenTrial], name: str, plan: RacePlan, end: int
) -> list[tuple[PairedTrial, PairedTrial]]:
    """Pairs of a challenger in the slots before ``end``."""
    uniform: dict[int, PairedTrial] = {}
    raced: dict[int, PairedTrial] = {}
    for trial in trials:
        attrs = trial.user_attrs
        slot, twin = attrs.get(SLOT_KEY), TWIN_KEY in attrs
        side = {UNIFORM: uniform, name: raced}.get(str(attrs.get(SAMPLER_KEY)))
        ended = trial.state == TrialState.COMPLETE or (twin and trial.state == TrialState.PRUNED)
        if side is None or twin != (side is raced) or not ended or slot is None:
            continue
        if plan.first <= slot < end:
            # No pruner stops a twin: a pruned one has diverged, and must count.
            side[slot] = PairedTrial(
                accuracy=float(trial.value or 0.0) if trial.state == TrialState.COMPLETE else 0.0,
                curve=trial.intermediate_values,
                seconds=float(attrs.get(SECONDS_KEY, 0.0)),
            )
    return [(raced[slot], uniform[slot]) for slot in sorted(raced.keys() & uniform.keys())]


class Race:
    """The race of one study; `RacePlan.make` describes ``initial`` and ``trials``.

    ``samplers`` is the portfolio, uniform sampling included. The choice keeps ``data``, a digest.
    """

    def __init__(
        self,
        samplers: Mapping[str, Component],
        *,
        initial: int,
        trials: int | None = None,
        judged: Literal["examples", "seconds"] = "examples",
        data: str = "",
    ) -> None:
        if trials is None and initial == 0:
            raise ArgumentError(
                "sampler 'auto' needs trials, how many the study will have, or initial; with "
                "neither it holds no race."
            )
        self._samplers = samplers
        self._initial = initial
        self._trials = trials
        self._judged = judged
        self._data = data

    def end(self, study: optuna.Study) -> int:
        """The first slot after those that are raced; 0 once the race is decided."""
        plan = self._open_plan(study)
        return 0 if plan is None else plan.end

    def needs_record(self, study: optuna.Study) -> bool:
        """Whether the race is open, and a sampler in it uses the study's record of examples."""
        plan = self._open_plan(study)
        return plan is not None and any(
            uses_record(self._samplers[name]) for name in plan.challengers
        )

    def sampler(self, study: optuna.Study) -> str:
        """Name of the batch sampler that a new trial is trained with."""
        choice = stored_choice(study)
        return UNIFORM if choice is None else choice.sampler

    def advance(self, study: optuna.Study, *, has_record: Callable[[], bool] | None) -> bool:
        """Queue the twins that are due, or decide the race; returns whether twins were queued.

        The caller holds the study's lock. The first call makes the plan, if the study has none.
        ``has_record`` returns whether the study's record of examples can be used by now. It is None
        if no record is kept; samplers that use one do not enter then.
        """
        if stored_choice(study) is not None:
            return False
        race = self._stored_plan(study) or self._begin(study, keeps_record=has_record is not None)
        if race is None:
            return False
        # Each call goes through all rounds: the study stores twins, not who is still in the race.
        # In this order, so that each trial that has ended in the plan has ended in `trials`, too.
        plan = Plan.of(study)
        trials = study.get_trials(deepcopy=False)
        alive, left = list(race.challengers), {}
        for number, (_, pairs) in enumerate(race.rounds, 1):
            if not alive:
                break
            end = race.first + pairs
            # By sampler, so that twins of one sampler share a stack and fewer slots stay free.
            due = [
                (trial, name)
                for name in alive
                for trial in _originals(trials, range(race.first, end))
                if (trial.user_attrs[SLOT_KEY], name) not in plan.places
            ]
            if due:
                return self._queue(study, due, has_record)
            if not _is_over(plan, end):
                return False
            standings = [
                Standing.of(
                    name,
                    _pairs(trials, name, race, end),
                    error=race.error,
                    judged=race.judged,
                    final=race.pairs,
                )
                for name in alive
            ]
            left.update({standing.name: standing for standing in standings})
            if number < len(race.rounds):
                alive = _survivors(standings, race.rounds[number][0], race.judged)
        finalist = left[alive[0]] if alive else None
        self._store(study, self._decide(study, trials, race, finalist, tuple(left.values())))
        return False

    def _open_plan(self, study: optuna.Study) -> RacePlan | None:
        """The plan of a race that is not decided; None before it is made, and without a race."""
        return self._stored_plan(study) if stored_choice(study) is None else None

    def _stored_plan(self, study: optuna.Study) -> RacePlan | None:
        """The plan; None before the first `advance`.

        Raises `ArgumentError` if a challenger is not in the portfolio.
        """
        stored = study.user_attrs.get(RACE_KEY)
        if stored is None:
            return None
        plan = RacePlan(**{**stored, "challengers": tuple(stored["challengers"])})
        names = ", ".join(self._samplers)
        for name in plan.challengers:
            require(name in self._samplers, "portfolio", f"one with '{name}', which races", names)
        return plan

    def _queue(
        self,
        study: optuna.Study,
        due: Sequence[tuple[FrozenTrial, str]],
        has_record: Callable[[], bool] | None,
    ) -> bool:
        """Queue all twins that are due; none while one of them needs a record that is missing."""
        needs = any(uses_record(self._samplers[name]) for _, name in due)
        if needs and not (has_record is not None and has_record()):
            return False
        for trial, name in due:
            queue_twin(study, trial, name)
        return True

    def _begin(self, study: optuna.Study, *, keeps_record: bool) -> RacePlan | None:
        """Store the plan of the race, or why there is none."""
        challengers = {
            name: sampler
            for name, sampler in self._samplers.items()
            if name != UNIFORM and (keeps_record or not uses_record(sampler))
        }
        plan = RacePlan.make(
            challengers, trials=self._trials, initial=self._initial, judged=self._judged
        )
        if plan is None:
            self._store(study, Choice(sampler=UNIFORM, why=self._why_no_race(challengers)))
        else:
            # It begins after trials of another objective and added ones, which it cannot use.
            plan = dataclasses.replace(plan, first=plan.first + Plan.of(study).first_running_slot)
            study.set_user_attr(RACE_KEY, dataclasses.asdict(plan))
        return plan

    def _why_no_race(self, challengers: Mapping[str, Component]) -> str:
        if not challengers:
            return "no other sampler can enter the race"
        if self._trials is None:
            return f"{self._initial} initial configurations are too few for a race"
        enough = (n for n in range(1, 1000) if RacePlan.make(challengers, trials=n))
        why = f"{self._trials} trials are too few for a race"
        return f"{why}: begin another study with at least {next(enough)}"

    def _decide(
        self,
        study: optuna.Study,
        trials: Sequence[FrozenTrial],
        race: RacePlan,
        finalist: Standing | None,
        standings: tuple[Standing, ...],
    ) -> Choice:
        evidence = None if finalist is None else _evidence(study, trials, finalist.name)
        is_kept = evidence is not None and not _pruner_was_given(study)
        sampler, why = _sampler_and_reason(race, finalist, standings, evidence)
        twins = [trial for trial in trials if TWIN_KEY in trial.user_attrs]
        examples, seconds = _spent(twins)
        return Choice(
            sampler=sampler,
            why=f"{why}; judged at equal {race.judged}",
            pairs=max((one.examples.n for one in standings), default=0),
            evidence=evidence.digest if evidence is not None and is_kept else None,
            judged=race.judged,
            standings=standings,
            twins=sum(trial.state != TrialState.FAIL for trial in twins),
            examples=examples,
            seconds=round(seconds, 3),
            data=self._data,
        )

    def _store(self, study: optuna.Study, choice: Choice) -> None:
        unused = study.user_attrs.get(GIVEN_KEY, {}).get("unused")
        if unused:
            choice = dataclasses.replace(choice, why=f"{choice.why}; {unused}")
        study.set_user_attr(CHOICE_KEY, choice.to_json())


def _is_over(plan: Plan, end: int) -> bool:
    """Whether every slot before ``end`` has been begun, and its trials have ended."""
    return plan.next_slot >= end and all(slot >= end for slot, _ in plan.unsettled())


def _originals(trials: Sequence[FrozenTrial], slots: range) -> list[FrozenTrial]:
    """Complete trials under uniform sampling in some slots."""
    return [
        trial
        for trial in trials
        if trial.state == TrialState.COMPLETE
        and TWIN_KEY not in (attrs := trial.user_attrs)
        and attrs.get(SLOT_KEY) in slots
        and attrs.get(SAMPLER_KEY) == UNIFORM
    ]


def _survivors(standings: Sequence[Standing], count: int, by: str) -> list[str]:
    """Names of the best ``count`` that are ahead of uniform sampling and may be shown to be."""
    ahead = [one for one in standings if one.open and all(e.value > 0 for e in one.gains(by))]
    ranked = sorted(ahead, key=lambda one: -min(e.value for e in one.gains(by)))
    return [one.name for one in ranked[:count]]


def _interval_text(estimate: Estimate) -> str:
    if not estimate.bounded:
        return "too few pairs for an interval"
    level = f"{100 * estimate.confidence:.4g}% interval"
    return f"{level} {100 * estimate.low:+.2f} to {100 * estimate.high:+.2f}"


def _spent(twins: Sequence[FrozenTrial]) -> tuple[int, float]:
    """Training examples and seconds of twins; those of a resumed attempt include the one before."""
    results = Results(twins)
    counted = [
        one.attrs
        for attempts in results.places.values()
        for one, after in itertools.zip_longest(attempts, attempts[1:])
        if after is None or RESUMED_KEY not in after.attrs
    ]
    examples, seconds = results.unreported
    examples += sum(int(attrs.get(EXAMPLES_KEY, 0)) for attrs in counted)
    return examples, seconds + sum(float(attrs.get(SECONDS_KEY, 0.0)) for attrs in counted)


def _standing_text(standing: Standing) -> str:
    shown = [
        f"{100 * one.value:+.2f} points ({_interval_text(one)}) at {what}"
        for one, what in (
            (standing.examples, "equal examples"),
            (standing.seconds, "equal seconds"),
        )
    ]
    return f"{standing.name}, {standing.examples.n} pairs: {' and '.join(shown)}"


def _pruner_was_given(study: optuna.Study) -> bool:
    """Whether the pruner has evidence from a file, and so measures none."""
    return bool(study.user_attrs.get(GIVEN_KEY, {}).get("pruner"))


def _evidence(study: optuna.Study, trials: Sequence[FrozenTrial], name: str) -> Evidence | None:
    """Evidence from a challenger's pairs; stored with the study, unless it was given another."""
    pruner = study.pruner
    keeper = pruner.keeper(study) if isinstance(pruner, AdvantagePruner) else EvidenceKeeper()
    keeper.read_trials(study, trials)
    evidence = keeper.measure(trials, direction=study.direction, sampler=name, source="race")
    if evidence is None:
        return None
    # A pruner keeps what it was given, which may be of another sampler.
    if not _pruner_was_given(study):
        study.set_user_attr(EVIDENCE_KEY, evidence.to_json())
        keeper.read_trials(study, trials)
    return evidence


def _sampler_and_reason(
    race: RacePlan,
    finalist: Standing | None,
    standings: Sequence[Standing],
    evidence: Evidence | None,
) -> tuple[str, str]:
    """The sampler to continue with, and why."""
    measured = [one for one in standings if one.examples.n]
    if not measured:
        return UNIFORM, "no pair of trainings reached its end"
    if finalist is None:
        best = max(measured, key=lambda one: min(e.value for e in one.gains(race.judged)))
        return UNIFORM, f"no other sampler could be shown to be ahead; best {_standing_text(best)}"
    text = _standing_text(finalist)
    if not all(estimate.above(0.0) for estimate in finalist.gains(race.judged)):
        return UNIFORM, f"{text}: not shown to be above 0"
    if evidence is None:
        return finalist.name, f"{text}; fidelity was not measured"
    # Without the last budget: no pruner decides at the end of a trial.
    for share, loss in zip(evidence.budgets[:-1], evidence.fidelity[:-1], strict=True):
        if loss.below(-evidence.margin):
            worse = f"fidelity at {100 * share:.3g}% is worse by {-loss.value:.2f}"
            return UNIFORM, f"{text}, but {worse}"
    return finalist.name, f"{text}, and fidelity is not shown to be worse"
