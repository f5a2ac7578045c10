"""Trials and batch samplers under Lightning."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
import torch.nn.functional as F
from optuna.trial import FrozenTrial, TrialState
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hpo_mab import MABSampler, TrialReporter
from hpo_mab._errors import ArgumentError
from hpo_mab.storage import Storage
from hpo_mab.training import Evaluation

lightning = pytest.importorskip("lightning", reason="needs Lightning (extra 'lightning')")
callbacks = pytest.importorskip("lightning.pytorch.callbacks")
pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's.

EPOCHS, BATCH_SIZE, EXAMPLES = 4, 10, 40
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def _data() -> TensorDataset:
    draws = torch.Generator().manual_seed(0)
    inputs = torch.randn(EXAMPLES, 5, generator=draws)
    return TensorDataset(inputs, (inputs @ torch.randn(5, 3, generator=draws)).argmax(1))


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


class Module(lightning.LightningModule):
    """Fails at the validation numbered ``fails_at``, from 0."""

    def __init__(self, *, fails_at: int = -1) -> None:
        super().__init__()
        self.model = _network()
        self.fails_at = fails_at
        self.validations = 0

    def training_step(self, batch: Any, batch_index: int) -> Any:
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_index: int) -> None:
        if self.validations == self.fails_at:
            raise OSError("shard 3 is gone")
        self.validations += 1
        self.log("accuracy", (self.model(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.5, momentum=0.9)


def _fit(
    storage: Storage,
    module: Module,
    *,
    pruner: optuna.pruners.BasePruner | None = None,
    catch: tuple[type[Exception], ...] = (),
    trainer_options: dict[str, Any] | None = None,
    callbacks: Sequence[Any] = (),
    ckpt_path: Path | None = None,
    **options: Any,
) -> tuple[FrozenTrial, list[Evaluation]]:
    """One trial of a study, trained by Lightning, and its curve."""
    from hpo_mab.lightning import TrialCallback

    def objective(trial: optuna.Trial) -> float:
        given = {"monitor": "accuracy", "budget_examples": EPOCHS * EXAMPLES, "evaluations": EPOCHS}
        callback = TrialCallback(trial, curves=storage.curves, **{**given, **options})
        trainer = lightning.Trainer(
            max_epochs=EPOCHS,
            callbacks=[*callbacks, callback],
            **{**QUIET, **(trainer_options or {})},
        )
        loader = DataLoader(_data(), batch_size=BATCH_SIZE)
        valid = DataLoader(_data(), batch_size=EXAMPLES)
        trainer.fit(module, loader, valid, ckpt_path=ckpt_path)
        return callback.accuracy

    study = optuna.create_study(
        storage=storage.optuna, direction="maximize", pruner=pruner or optuna.pruners.NopPruner()
    )
    study.optimize(objective, n_trials=1, catch=catch)
    trial = study.trials[0]
    return trial, storage.curves.load([trial._trial_id])[trial._trial_id]


def _by_hand(**options: Any) -> tuple[list[float], nn.Module]:
    """Accuracies that a `TrialReporter` gets of the same training in a plain loop."""
    model, data = _network(), _data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    found = []
    trial = optuna.create_study(direction="maximize").ask()
    given = {"budget_examples": EPOCHS * EXAMPLES, "evaluations": EPOCHS, **options}
    with TrialReporter(trial, model=model, **given) as reporter:
        for _ in range(EPOCHS):
            for inputs, targets in DataLoader(data, batch_size=BATCH_SIZE):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(inputs), targets)
                loss.backward()
                optimizer.step()
                reporter.step(len(targets), loss=loss)
            inputs, targets = data.tensors
            answers = reporter.network(inputs).argmax(1)
            found.append(float((answers == targets).float().mean()))
            reporter.report(accuracy=found[-1])
    return found, model


@pytest.mark.parametrize(
    ("average", "schedule"), [(0.0, "linear"), (0.9, "linear"), (0.9, "constant")]
)
def test_lightning_reports_what_a_plain_loop_reports(
    storage: Storage, average: float, schedule: str
) -> None:
    module = Module()
    trial, curve = _fit(storage, module, average=average, schedule=schedule)
    accuracies, model = _by_hand(average=average, schedule=schedule)
    assert [point.accuracy for point in curve] == pytest.approx(accuracies)
    assert [point.averaged for point in curve] == [average > 0] * 3 + [schedule == "constant"]
    assert [point.examples for point in curve] == [40, 80, 120, 160]
    assert trial.value == pytest.approx(accuracies[-1])
    # Training continued as without validation.
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(module.model.state_dict()[name], tensor)


def test_accumulated_gradients_leave_the_loss_as_it_is(storage: Storage) -> None:
    losses = []
    for batches in (1, 2):
        options = {"accumulate_grad_batches": batches, "max_steps": -1}
        _, curve = _fit(storage, Module(), average=0.0, trainer_options=options)
        losses.append(curve[0].train_loss)
    # The network begins the same and learns slowly: twice as large would be far off.
    assert losses[1] == pytest.approx(losses[0], rel=0.3)


def test_lightnings_own_average_is_reported_as_one(storage: Storage) -> None:
    if not hasattr(callbacks, "EMAWeightAveraging"):
        pytest.skip("needs Lightning 2.6")
    module, own = Module(), callbacks.EMAWeightAveraging(decay=0.9)
    _, curve = _fit(storage, module, average=None, callbacks=[own])
    assert [point.averaged for point in curve] == [True] * 4
    _, trained = _fit(storage, Module(), average=0.0)
    assert [point.accuracy for point in curve] != [point.accuracy for point in trained]


def test_checkpoints_have_the_trained_weights(storage: Storage, tmp_path: Path) -> None:
    checkpoint = callbacks.ModelCheckpoint(
        tmp_path, monitor="accuracy", mode="max", save_top_k=-1, save_weights_only=True
    )
    module = Module()
    trained: list[torch.Tensor] = []
    # Before the callback puts averaged weights into the module.
    module.on_validation_model_eval = lambda: trained.append(module.model[0].weight.clone())
    options = {"enable_checkpointing": True, "num_sanity_val_steps": 0}
    _fit(storage, module, average=0.9, callbacks=[checkpoint], trainer_options=options)
    assert len(checkpoint.best_k_models) == EPOCHS
    for path in checkpoint.best_k_models:
        saved = torch.load(path, weights_only=False)
        epoch = saved["epoch"]
        torch.testing.assert_close(saved["state_dict"]["model.0.weight"], trained[epoch])


def test_averages_differ_from_trained_weights_here() -> None:
    assert _by_hand(average=0.9)[0] != _by_hand(average=0.0)[0]


def test_the_pruner_ends_the_fit(storage: Storage) -> None:
    module = Module()
    trial, _ = _fit(storage, module, pruner=optuna.pruners.ThresholdPruner(lower=0.99))
    assert trial.state == TrialState.PRUNED
    assert trial.last_step == 1
    assert "hpo_mab:pruned_because" in trial.user_attrs


def test_an_error_leaves_the_curve_the_reason_and_the_trained_weights(storage: Storage) -> None:
    module = Module(fails_at=2)
    trained: list[torch.Tensor] = []
    module.on_validation_model_eval = lambda: trained.append(module.model[0].weight.clone())
    options = {"average": 0.9, "trainer_options": {"num_sanity_val_steps": 0}}
    trial, curve = _fit(storage, module, catch=(OSError,), **options)
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["hpo_mab:reason"].startswith("OSError: shard 3 is gone (")
    assert len(curve) == 2
    # Lightning calls the hook before the callback exchanges the weights.
    torch.testing.assert_close(module.model[0].weight, trained[-1])


class Interrupted(Module):
    def training_step(self, batch: Any, batch_index: int) -> Any:
        raise KeyboardInterrupt


def test_ctrl_c_leaves_no_running_trial(storage: Storage, python_handler: None) -> None:
    # Lightning ends the process.
    with pytest.raises(SystemExit):
        _fit(storage, Interrupted())
    (trial,) = optuna.load_study(study_name=None, storage=storage.optuna).trials
    assert trial.state == TrialState.FAIL


def test_the_sanity_check_is_no_evaluation(storage: Storage) -> None:
    module = Module()
    trial, _ = _fit(storage, module, trainer_options={"num_sanity_val_steps": 1})
    assert module.validations == EPOCHS + 1
    assert sorted(trial.intermediate_values) == [1, 2, 3, 4]


class Watched(Module):
    """Keeps the weights of its last validation."""

    def validation_step(self, batch: Any, batch_index: int) -> None:
        self.validated = self.model[0].weight.clone()
        super().validation_step(batch, batch_index)


def test_validations_outside_of_the_fit_are_no_evaluations(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = lightning.Trainer.fit

    def validate_before_and_after(
        trainer: Any, module: Watched, loader: Any, valid: Any, **given: Any
    ) -> None:
        trainer.validate(module, valid, verbose=False)
        fit(trainer, module, loader, valid, **given)
        trainer.validate(module, valid, verbose=False)
        assert torch.equal(module.validated, module.model[0].weight)

    monkeypatch.setattr(lightning.Trainer, "fit", validate_before_and_after)
    # After the only evaluation of the fit, another is due.
    options = {"check_val_every_n_epoch": 3}
    _, curve = _fit(storage, Watched(), schedule="constant", trainer_options=options)
    assert len(curve) == 1


def test_the_seconds_are_those_of_training(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    class Slow(Module):
        def training_step(self, batch: Any, batch_index: int) -> Any:
            now[0] += 1.0
            return super().training_step(batch, batch_index)

        def validation_step(self, batch: Any, batch_index: int) -> None:
            now[0] += 50.0  # Also of the sanity check, and where no evaluation is due.
            super().validation_step(batch, batch_index)

    made = functools.partial(TrialReporter, clock=lambda: now[0])
    monkeypatch.setattr("hpo_mab.lightning.TrialReporter", made)
    options = {"num_sanity_val_steps": 1}
    _, curve = _fit(storage, Slow(), evaluations=2, trainer_options=options)
    steps = EXAMPLES // BATCH_SIZE
    assert [point.seconds for point in curve] == [2 * steps, 4 * steps]


class TimeFirst(Module):
    """Gets the batch as the second dimension of its inputs; every fourth batch is None."""

    def __init__(self, sampler: MABSampler) -> None:
        super().__init__()
        self.sampler, self.batches = sampler, 0

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if not self.trainer.training:
            return batch
        self.drawn = self.sampler.draw()
        self.batches += 1
        return None if self.batches % 4 == 0 else (batch[0][None], batch[1])

    def training_step(self, batch: Any, batch_index: int) -> Any:
        losses = F.cross_entropy(self.model(batch[0][0]), batch[1], reduction="none")
        return self.sampler.update(losses, indices=self.drawn)


def test_with_a_sampler_each_batch_but_none_counts_as_its_batch_size(storage: Storage) -> None:
    sampler = MABSampler(_data().tensors[1], batch_size=BATCH_SIZE)
    _, curve = _fit(storage, TimeFirst(sampler), sampler=sampler, budget_examples=120)
    assert [point.examples for point in curve] == [30, 60, 90, 120]
    assert sampler.outstanding == 0  # The draws of batches that are None were discarded.


class Seen(Module):
    """Counts its validations in a buffer that it assigns."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def on_validation_epoch_end(self) -> None:
        self.seen = self.seen + 1


def test_a_buffer_that_validation_assigns_is_kept(storage: Storage) -> None:
    module = Seen()
    _fit(storage, module, average=0.9, trainer_options={"num_sanity_val_steps": 0})
    assert module.seen == EPOCHS


class Untrained(Module):
    def configure_optimizers(self) -> None:
        return None


def test_a_module_may_have_no_optimiser(storage: Storage) -> None:
    trial, _ = _fit(storage, Untrained())
    assert trial.state == TrialState.COMPLETE
    assert sorted(trial.intermediate_values) == [1, 2, 3, 4]


class Decaying(Module):
    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 16)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def test_the_learning_rate_is_that_of_the_last_step(storage: Storage) -> None:
    _, curve = _fit(storage, Decaying())
    rates = [0.5 * (1 - (steps - 1) / 16) for steps in (4, 8, 12, 16)]
    assert [point.learning_rate for point in curve] == pytest.approx(rates)


def test_a_training_that_continues_from_a_checkpoint_is_refused(
    storage: Storage, tmp_path: Path
) -> None:
    checkpoint = callbacks.ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1)
    options = {"enable_checkpointing": True}
    _fit(storage, Module(), callbacks=[checkpoint], trainer_options=options)
    for step in (4, 16):  # After the last one nothing is left to train.
        with pytest.raises(ArgumentError, match=f"ckpt_path must be None: .* from step {step}"):
            _fit(storage, Module(), ckpt_path=tmp_path / f"step={step}.ckpt")


def test_lightning_may_look_for_a_learning_rate_first(storage: Storage, tmp_path: Path) -> None:
    # It restores a checkpoint of its own afterwards.
    finder = callbacks.LearningRateFinder(num_training_steps=5, update_attr=False)
    options = {"default_root_dir": tmp_path}
    trial, _ = _fit(storage, Module(), callbacks=[finder], trainer_options=options)
    assert sorted(trial.intermediate_values) == [1, 2, 3, 4]


def test_a_name_that_is_not_logged_is_refused(storage: Storage) -> None:
    with pytest.raises(ArgumentError, match=r"monitor must be .* logs, 'accuracy', got 'val_acc'"):
        _fit(storage, Module(), monitor="val_acc")


def test_several_devices_are_refused(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lightning.Trainer, "world_size", 2)
    with pytest.raises(ArgumentError, match=r"devices must be 1 in all, .* got 2"):
        _fit(storage, Module())


class WithSampler(lightning.LightningModule):
    """Draws its batches with a `MABSampler`, as the documentation has it, and skips some."""

    def __init__(self) -> None:
        super().__init__()
        self.model = _network()
        self.skipped = 0

    def train_dataloader(self) -> DataLoader[Any]:
        data, trainer = _data(), self.trainer
        self.sampler = MABSampler(
            data.tensors[1],
            batch_size=BATCH_SIZE,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
        )
        return DataLoader(data, batch_sampler=self.sampler)

    def training_step(self, batch: Any, batch_index: int) -> torch.Tensor | None:
        inputs, targets = batch
        if batch_index % 2 == 1:
            self.sampler.discard()
            self.skipped += 1
            return None
        losses = F.cross_entropy(self.model(inputs), targets, reduction="none")
        return self.sampler.update(losses, targets=targets)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_lightning_answers_every_draw(tmp_path: Path) -> None:
    module = WithSampler()
    options = {"max_epochs": 2, "use_distributed_sampler": False, "default_root_dir": tmp_path}
    lightning.Trainer(**QUIET, **options).fit(module)
    assert module.skipped == 4
    assert module.sampler.outstanding == 0
