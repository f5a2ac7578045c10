"""What the trials of a study share, and how one of them is trained."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from hpo_mab._errors import ArgumentError, check_integer, name_of
from hpo_mab._examples import ExampleRecord
from hpo_mab._interrupts import interruptible
from hpo_mab._machine import version_of
from hpo_mab._plan import derive_seed
from hpo_mab.data import Augmentation, DatasetSplits, ImageData, ImageSplits, Normalization
from hpo_mab.samplers import BatchSampler
from hpo_mab.samplers._registry import record_column
from hpo_mab.search._checkpoint import warn_of_misfit
from hpo_mab.search._space import Assignment, Component, Configuration
from hpo_mab.training import (
    Budget,
    DeviceBatches,
    DeviceSweep,
    LoaderBatches,
    LoaderSweep,
    StackedTrainer,
    Training,
)
from hpo_mab.training._batches import Batches, Sweep
from hpo_mab.training._device import check_precision, cpu_threads, random_state, seed_random
from hpo_mab.training._schedule import LearningCurve
from hpo_mab.training._stack import StackSlot
from hpo_mab.training._tally import ExampleTally


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoopSettings:
    """Settings of the training loop that no trial changes.

    The fields are arguments of `hpo_mab.search.TrainingObjective`, which describes them.
    """

    evaluations: int
    precision: str
    channels_last: bool
    graph: bool
    schedule: str
    keep: str
    threads: int | None
    early_validation: int | None

    def __post_init__(self) -> None:
        check_precision(self.precision)
        LearningCurve(steps=1, schedule=self.schedule, keep=self.keep)
        for name in ("evaluations", "threads", "early_validation"):
            if (count := getattr(self, name)) is not None:
                check_integer(name, count, 1)


class Workload:
    """Data on the device, a network and a budget: everything but the configuration.

    `hpo_mab.search.TrainingObjective` describes the arguments.
    """

    def __init__(
        self,
        *,
        model: Callable[..., nn.Module],
        data: ImageSplits | DatasetSplits | tuple[Dataset[Any], Dataset[Any]],
        budget: Budget,
        loop: LoopSettings,
        augmentation: Augmentation | None = None,
        num_workers: int = 0,
        device: torch.device,
    ) -> None:
        if isinstance(data, tuple) and len(data) == 2:
            data = DatasetSplits.of(*data)
        if not isinstance(data, ImageSplits | DatasetSplits):
            raise ArgumentError(
                "data must be an ImageSplits or a pair of datasets (training, validation), "
                f"got {type(data).__name__}."
            )
        if augmentation is not None and not isinstance(data, ImageSplits):
            raise ArgumentError("augmentation needs ImageSplits; a dataset brings its own.")
        check_integer("num_workers", num_workers, 0)
        if num_workers and isinstance(data, ImageSplits):
            raise ArgumentError(
                "num_workers must be 0 with ImageSplits, whose batches no process loads, "
                f"got {num_workers}."
            )
        self.budget = budget
        # On MPS some versions of PyTorch compute wrong gradients of batch normalisation with it.
        last = loop.channels_last and device.type != "mps"
        self.loop = dataclasses.replace(loop, channels_last=last)
        self.device = device
        #: The study's record of examples, frozen for its samplers; None before that.
        self.example_record: ExampleRecord | None = None
        self._made: weakref.ref[nn.Module] | None = None
        self._model = model
        self._augmentation = augmentation
        self._num_workers = num_workers
        self.data = data.to(device) if isinstance(data, ImageSplits) else data
        self.labels = data.labels.cpu()

    def __getstate__(self) -> dict[str, Any]:
        """The state for a copy in another process, where no network has been made."""
        return {**self.__dict__, "_made": None}

    @property
    def num_examples(self) -> int:
        """Training examples, one epoch."""
        return len(self.labels)

    def trial_examples(self, batch_size: int) -> int:
        """Budget of a trial in training examples."""
        return self._steps(self.budget, batch_size) * batch_size

    def check_evaluations(
        self, batch_sizes: Iterable[int], *, needs_all: bool = False, name: str = "evaluations"
    ) -> None:
        """Refuse more evaluations than steps if ``needs_all``, or if trials differ in steps."""
        steps = {self._steps(self.budget, size) for size in batch_sizes}
        most = self.loop.evaluations
        if min(steps) < most and (needs_all or max(steps) > min(steps)):
            raise ArgumentError(
                f"{name} must be at most {min(steps)}, the steps of a trial with the largest "
                f"batch size, got {most}."
            )

    @contextlib.contextmanager
    def training(
        self,
        configuration: Configuration,
        *,
        seed: int,
        final: Budget | None = None,
        evaluations: int | None = None,
        budgets: int = 1,
        state: Mapping[str, Any] | None = None,
        examples: bool = False,
    ) -> Iterator[Training]:
        """One network in training; its random state is its own and follows from ``seed``.

        Args:
            configuration: What to train.
            seed: Decides initial weights, batches and augmentation.
            final: Another budget than a trial's.
            evaluations: Points of the learning curve; None takes a trial's.
            budgets: Length in budgets, see `hpo_mab.training.Training`.
            state: Where to continue, see `hpo_mab.training.Training`; if it does not fit, the
                training begins at zero, with a warning.
            examples: Whether to add up what is seen of each example.

        Raises:
            ArgumentError: A value in the configuration outside its bound, or another thread of
                this process is training.
        """
        # Ctrl-C may have ended an evaluation before it has turned gradients on again.
        with torch.enable_grad(), random_state(self.device), cpu_threads(self.loop.threads):
            begin = functools.partial(
                self._start,
                configuration,
                seed=seed,
                budget=final or self.budget,
                evaluations=evaluations or self.loop.evaluations,
                budgets=budgets,
                examples=examples,
            )
            # A user's network may take long to make.
            with interruptible():
                made = begin() if state is None else _resumed(begin, state)
            # Freed: it is as large as the network and the sampler.
            state = None
            with contextlib.closing(made):
                yield made

    def test_accuracy(self, trained: Training) -> float:
        """Accuracy on the test set of the weights that were evaluated last, in [0, 1]."""
        accuracy, _ = trained.evaluate(self._sweep("test"))
        return accuracy

    def identity(self, configuration: Configuration, *, seed: int) -> dict[str, Any]:
        """All that decides a training, as plain values: equal where one can continue another."""
        # Only on CUDA does a graph change what is saved.
        loop = dataclasses.replace(self.loop, graph=self.loop.graph and self.device.type == "cuda")
        parts = {
            "configuration": configuration,
            "budget": self.budget,
            "loop": loop,
        }
        return {
            "hpo_mab": version_of("hpo_mab"),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "device": self.device.type,
            "seed": seed,
            "examples": self.num_examples,
            **{k: json.dumps(v, sort_keys=True, default=_json_form) for k, v in parts.items()},
            "augmentation": repr(self._augmentation),
        }

    def network(self, configuration: Configuration, *, seed: int) -> nn.Module:
        """An untrained network on the CPU; its weights follow from ``seed``.

        Raises:
            ArgumentError: Another thread of this process is training.
        """
        with random_state(self.device):
            seed_random(seed, self.device)
            return self._network(configuration)

    def stack(
        self, configuration: Configuration, *, slots: int, seed: int, examples: bool = False
    ) -> StackedTrainer:
        """A stack for trials that share the configuration's network, optimiser and batch size.

        ``seed`` is that of its bandits and augmentation.
        """
        return StackedTrainer(
            self.network(configuration, seed=seed),
            slots=slots,
            batches=self._device_batches(derive_seed(seed, "augmentation"), channels_last=False),
            validation=self._device_sweep("validation", channels_last=False),
            early=self._device_sweep("early", channels_last=False),
            batch_size=configuration.batch_size,
            optimizer=configuration.optimizer.name,
            precision=self.loop.precision,
            seed=derive_seed(seed, "sampler"),
            tally=self._tally(slots) if examples else None,
        )

    def start_stacked(
        self,
        where: StackSlot,
        assignment: Assignment,
        *,
        sampler: BatchSampler,
        state: Mapping[str, Any] | None = None,
        final: Budget | None = None,
        evaluations: int | None = None,
        network: nn.Module | None = None,
    ) -> None:
        """Begin a trial's training in a slot of a stack; as `training` does alone.

        ``network``, if given, is copied in place of one that follows from the trial's seed.
        """
        configuration = assignment.configuration
        where.stack.start(
            where.slot,
            network or self.network(configuration, seed=assignment.seed),
            sampler=sampler,
            optimizer=configuration.optimizer.options,
            steps=self._steps(final or self.budget, configuration.batch_size),
            evaluations=evaluations or self.loop.evaluations,
            budgets=assignment.budgets,
            state=state,
            **self._options(configuration),
        )

    @property
    def images(self) -> ImageData | None:
        """The training images; None for data sets of another kind."""
        return self.data.train if isinstance(self.data, ImageSplits) else None

    def sampler(
        self, configuration: Configuration, *, seed: int, stacked: bool = False
    ) -> BatchSampler:
        """A trial's batch sampler.

        If ``stacked``, a stack takes over what bandits hold on the host.
        """
        part = configuration.sampler
        options = dict(part.options)
        if configuration.difficulty:
            options["difficulty"] = self._difficulty(part)
        # A stack's bandits are always active. With ``active`` below 1 the sampler draws itself.
        stack_draws = stacked and part.name == "mab" and options.get("active", 1) == 1
        # A data loader takes indices on the host, so the sampler is there too.
        on_host = stack_draws or self.images is None
        sampler: BatchSampler = part.make(
            self.labels,
            batch_size=configuration.batch_size,
            seed=derive_seed(seed, "sampler"),
            device="cpu" if on_host else self.device,
            **options,
        )
        if sampler.batch_size != configuration.batch_size:
            raise ArgumentError(
                f"sampler '{part.name}' must take batch_size = {configuration.batch_size}, "
                f"got {sampler.batch_size}."
            )
        return sampler

    def _network(self, configuration: Configuration) -> nn.Module:
        made = self._model(**configuration.model)
        if not isinstance(made, nn.Module):
            raise ArgumentError(f"model must make a torch.nn.Module, got {type(made).__name__}.")
        if self._made is not None and self._made() is made:
            raise ArgumentError(
                "model must make a new network at each call, got the last one again."
            )
        self._made = weakref.ref(made)
        return made

    def _difficulty(self, sampler: Component) -> Tensor:
        """What the first trials of the study saw of each example, as a sampler takes it, [N]."""
        column = record_column(sampler.make)
        if self.example_record is None or column is None:
            raise ArgumentError("the trial used the study's record of examples, which is gone.")
        means = np.full(self.num_examples, np.nan)
        means[self.example_record.examples] = self.example_record.counts.mean(column)
        return torch.from_numpy(means)

    def _start(
        self,
        configuration: Configuration,
        *,
        seed: int,
        budget: Budget,
        evaluations: int,
        budgets: int,
        examples: bool,
    ) -> Training:
        # For initial weights and dropout; sampler and augmentation have seeds of their own.
        seed_random(seed, self.device)
        model = self._network(configuration).to(self.device)
        optimizer = configuration.optimizer
        return Training(
            model,
            batches=self._batches(derive_seed(seed, "augmentation")),
            validation=self._sweep("validation"),
            early=None if self.loop.early_validation is None else self._sweep("early"),
            sampler=self.sampler(configuration, seed=seed),
            optimizer=optimizer.make(model.parameters(), **optimizer.options),
            steps=self._steps(budget, configuration.batch_size),
            evaluations=evaluations,
            budgets=budgets,
            precision=self.loop.precision,
            channels_last=self.loop.channels_last,
            graph=self.loop.graph,
            tally=self._tally(1) if examples else None,
            **self._options(configuration),
        )

    def _options(self, configuration: Configuration) -> dict[str, Any]:
        """Arguments of a training, alone or stacked."""
        return {
            "warmup": configuration.warmup,
            "schedule": self.loop.schedule,
            "average": configuration.average,
            "keep": self.loop.keep,
            "label_smoothing": configuration.label_smoothing,
        }

    def _tally(self, slots: int) -> ExampleTally:
        return ExampleTally(self.labels, slots=slots, device=self.device)

    def _steps(self, budget: Budget, batch_size: int) -> int:
        return budget.num_steps(num_examples=self.num_examples, batch_size=batch_size)

    def _batches(self, seed: int) -> Batches:
        if isinstance(self.data, ImageSplits):
            return self._device_batches(seed, channels_last=self.loop.channels_last)
        return LoaderBatches(
            self.data.train, device=self.device, num_workers=self._num_workers, seed=seed
        )

    def _sweep(self, part: str) -> Sweep:
        if isinstance(self.data, ImageSplits):
            return self._device_sweep(part, channels_last=self.loop.channels_last)
        return LoaderSweep(self._part(part), device=self.device, num_workers=self._num_workers)

    def _device_batches(self, seed: int, *, channels_last: bool) -> DeviceBatches:
        return DeviceBatches(
            self._part("train"),
            normalization=self._normalization(channels_last),
            augmentation=self._augmentation,
            seed=seed,
        )

    def _device_sweep(self, part: str, *, channels_last: bool) -> DeviceSweep:
        return DeviceSweep(self._part(part), normalization=self._normalization(channels_last))

    def _part(self, name: str) -> Any:
        """A part of the data; ``"early"`` is what evaluations before the last take.

        That is a fixed random part of the validation examples, in order. All trials of all studies
        on the same validation examples have the same part.
        """
        examples: Any = getattr(self.data, "validation" if name == "early" else name)
        if examples is None:
            raise ArgumentError("the test set is missing; data are a pair of datasets.")
        count = self.loop.early_validation
        if name != "early" or count is None or count >= len(examples):
            return examples
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(len(examples), generator=generator, device="cpu")
        rows = order[:count].sort().values
        if isinstance(examples, ImageData):
            return examples.subset(rows.to(examples.device))
        return Subset(examples, rows.tolist())

    def _normalization(self, channels_last: bool) -> Normalization:
        data: Any = self.data  # Only images are normalised.
        return Normalization(data.mean, data.std, channels_last=channels_last)


def _resumed(begin: Callable[[], Training], state: Mapping[str, Any]) -> Training:
    """A training that continues from a state; from zero, with a warning, if it does not fit."""
    made = begin()
    try:
        return made.load_state_dict(state)
    except Exception as error:  # Parts raise different errors for a state that does not fit.
        warn_of_misfit(error)
    # Outside of the handler, whose error refers to the first network: memory may hold only one.
    del made
    return begin()


def _json_form(value: Any) -> Any:
    """A value that JSON lacks: of a dataclass the fields with ``compare``, of others a text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.compare}
    # An option may be a function or a class.
    return name_of(value) if callable(value) else str(value)
