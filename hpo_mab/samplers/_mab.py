"""MABSampler: one bandit a slot of the batch, one arm an example."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal, Unpack

import numpy as np
import torch
from torch import Tensor

from hpo_mab._errors import require
from hpo_mab._registry import Named
from hpo_mab.bandits._device import DeviceEngine
from hpo_mab.bandits._host import HostEngine
from hpo_mab.bandits._settings import BanditEngine, BanditSettings, stratified_shares
from hpo_mab.samplers._base import BatchSampler, CommonArguments
from hpo_mab.samplers._feedback import Draw


class MABSampler(BatchSampler):
    """Mini-batches drawn by multi-armed bandits that are rewarded for a high loss.

    The training set is split at random, stratified by class, into one share for each slot of the
    batch. A share is a bandit and its examples are the arms: every example is an arm of exactly
    one bandit. Shares, and each class's counts in them, differ in size by at most 1. At each
    step every bandit draws one arm; a batch has no duplicates. An arm is rewarded if its loss
    reaches the moving average of the training loss. Its posterior of that reward is Beta-Bernoulli:
    Beta(prior + successes, prior + failures) over the pulls that count.

    A batch is compared with the moving average of the batches *before* it, bias-corrected; the
    first batch with its own mean. A batch with a loss that is not finite changes nothing. With late
    feedback, a draw uses the posteriors of that time; its arms are rewarded when their losses are
    given.

    Thompson sampling and softmax give every example a positive chance of being drawn again. So does
    a positive ``floor`` or ``epsilon``. ``"epsilon_greedy"`` with ``epsilon = 0`` takes the best
    arm only. With ``memory=None`` an arm that failed early may then never be drawn again; with a
    window it returns once its failures are forgotten.

    Arms without counted pulls have equal posteriors. They are drawn in shuffled passes (see
    ``replacement``). So a bandit without counted pulls draws as uniform sampling does.

    On the CPU, Thompson sampling counts arms by state, exactly, at a cost that hardly depends on
    their number. Arms with over 12 pulls are drawn one by one, also exactly. With ``memory=None``
    a step then costs at most one Beta variate for each of them, about 1 ms for 10,000 examples.

    On CUDA all state is on the device, and drawing and learning do not wait for the host; both can
    be captured in a CUDA graph (see `graph_generator`). Other devices use the CPU. The split into
    shares is always made on the CPU.

    Source: "Bandit sampling for faster neural network training with SGD", ICLR 2023 Tiny Papers,
    "the paper" below. It does not state the prior and the decay of the moving average.

    Args:
        **common: Arguments of every sampler, see `BatchSampler`.
        policy: ``"thompson"``: the arm of the greatest draw from the posteriors.
            ``"epsilon_greedy"``: the arm of the best posterior mean, with probability ``epsilon``
            any arm. ``"softmax"``: probability proportional to ``exp(mean / temperature)``.
            Ties are broken uniformly. On a CPU, all but ``"thompson"`` look at each arm, which
            takes many times longer.
        prior: Beta parameters of an arm without pulls, each in [0.1, 1000].
        loss_decay: Decay of the moving average of the loss a batch, in [0, 1).
        memory: How many of a bandit's last pulls count, at least 1. ``"auto"``: a quarter as many
            as it has arms, or all if ``discount`` is given. None: all of them, as in the paper,
            which over-focuses on examples that stay hard after about an epoch. With None,
            ``correction`` of Thompson sampling needs a distribution function for each state that
            occurs, and a step of a long training takes tens of ms on the CPU.
        discount: Factor in (0, 1) on all counts of a bandit at each of its pulls, in place of
            ``memory``. Counts are then not whole, and a draw on the CPU costs tens of times more.
        floor: Probability in [0, 1] of a uniform pick in place of the policy's. 1 is uniform
            sampling.
        correction: Exponent in [0, 1] of the importance weights ``1 / (A p)``: ``p`` is the exact
            probability of the pick in its bandit, ``A = N / B`` the mean number of arms. 0: no
            weights, as in the paper. 1: the weighted mean loss is an unbiased estimate of the mean
            loss over all examples. On CUDA, more than 48 pulls of an arm count as 48 of the same
            success rate in Thompson sampling's ``p``.
        replacement: Whether arms without counted pulls, and uniform picks, are drawn with
            replacement. False: in shuffled passes over the bandit's arms, which draw no arm twice
            before all others. Averaged over the random orders, each arm has the same chance as
            with replacement. ``"auto"``: False without ``correction``, which needs True.
        active: Share of the training budget, in [0, 1], after which sampling is uniform, every
            arm once a pass; 1: never. `set_progress` sets the share spent. A CUDA graph stays in
            the phase in which it was captured.
        epsilon: Of ``"epsilon_greedy"``, in [0, 1].
        temperature: Of ``"softmax"``, positive.
        reward: Which losses of a batch are rewarded: ``"above_average"``, those that reach the
            moving average; or another function of the losses and that average, or its name
            ``"package.module:name"``. It returns a boolean for each loss; losses may have a leading
            dimension for the networks of a stack.

    Raises:
        ArgumentError: An argument outside its bound, a negative ``seed``, or ``memory`` together
            with ``discount``. Also ``discount`` with ``correction`` of Thompson sampling, which
            then has no exact propensity.

    Examples:
        >>> import torch
        >>> from hpo_mab.samplers import MABSampler
        >>> labels = torch.arange(100) % 2
        >>> sampler = MABSampler(labels, batch_size=10)
        >>> for _ in range(100):
        ...     indices = sampler.draw()
        ...     loss = sampler.update(1.0 + labels[indices])  # class 1 has the higher loss
        >>> p = sampler.propensities()
        >>> bool(p[labels == 1].mean() > p[labels == 0].mean())
        True
    """

    def __init__(
        self,
        labels: Tensor | Sequence[int],
        *,
        policy: Literal["thompson", "epsilon_greedy", "softmax"] = "thompson",
        prior: tuple[float, float] = (1.0, 1.0),
        loss_decay: float = 0.99,
        memory: int | Literal["auto"] | None = "auto",
        discount: float | None = None,
        floor: float = 0.0,
        correction: float = 0.0,
        replacement: bool | Literal["auto"] = "auto",
        active: float = 1.0,
        epsilon: float = 0.1,
        temperature: float = 0.1,
        reward: Named = "above_average",
        **common: Unpack[CommonArguments],
    ) -> None:
        settings = BanditSettings(
            policy=policy,
            prior=prior,
            loss_decay=loss_decay,
            memory=memory,
            discount=discount,
            floor=floor,
            correction=correction,
            replacement=replacement,
            active=active,
            epsilon=epsilon,
            temperature=temperature,
            reward=reward,
        )
        super().__init__(labels, **common)
        require(self.seed >= 0, "seed", "at least 0", self.seed)
        # Ranks share the seed, but their bandits must not draw the same numbers.
        rng = np.random.default_rng([self.seed, self.rank])
        examples = self.examples
        positions = stratified_shares(self.labels[examples].numpy(), self.batch_size, rng)
        held = examples.numpy().astype(np.int32)
        self._shares = np.where(positions < 0, np.int32(-1), held[positions])
        self._rng = rng
        #: The bandits' knobs.
        self.settings = settings
        # Other devices use the CPU's engine. A call of `to` costs as much as a small operation,
        # even on the same device.
        self._elsewhere = self.device.type not in ("cpu", "cuda")

    @functools.cached_property
    def _engine(self) -> BanditEngine:
        # Made at the first use: a stack has its own bandits, and only takes shares and settings.
        return _make_engine(self._shares, self.settings, self.device, self._rng)

    @property
    def shares(self) -> Tensor:
        """Examples of each bandit, int32 [B, A] on the CPU; shorter shares end in -1."""
        return torch.from_numpy(self._shares)

    @property
    def graph_generator(self) -> torch.Generator | None:
        """The device's random generator; None where the CPU's engine draws.

        Up to PyTorch 2.13, a CUDA graph that captures `draw` needs it:
        ``graph.register_generator_state(sampler.graph_generator)``.
        """
        return self._engine.generator

    @property
    def capturable(self) -> bool:
        """Whether a CUDA graph can hold draws and updates: not where they depend on progress."""
        # A subclass may draw or learn by the step or the progress.
        own = type(self)._draw is MABSampler._draw and type(self)._learn is MABSampler._learn
        return own and self.graph_generator is not None and self.settings.active == 1

    def statistics(self) -> dict[str, float]:
        """``reward_rate`` since the last call and ``concentration`` of all draws so far.

        Each is left out where it has no value: before the first losses, before the first draw.
        """
        return self._engine.statistics()

    def propensities(self) -> Tensor:
        """Probability of each example in the next draw by the policy, floor included.

        Returns:
            float64 [N] on the CPU, 0 for other ranks' examples; the sum over a bandit is 1.

        Raises:
            ArgumentError: Thompson sampling with ``discount``, for which there is no exact form.
        """
        table = self._engine.propensities().cpu()
        shares = self.shares
        held = shares >= 0
        found = torch.zeros(len(self.labels), dtype=torch.float64, device="cpu")
        found[shares[held].long()] = table[held]
        return found

    def _draw(self) -> Draw:
        # A training that continues beyond its budget has a progress of 1.
        uniform = self._progress >= self.settings.active < 1
        indices, weights, arms = self._engine.draw(uniform=uniform)
        if self._elsewhere:
            indices = indices.to(self.device)
        return Draw(indices, weights, arms)

    def _learn(
        self, draw: Draw, losses: Tensor, logits: Tensor | None, targets: Tensor | None
    ) -> None:
        self._engine.learn(draw.context, losses)

    def _state(self) -> dict[str, Any]:
        return {"engine": self._engine.state()}

    def _load_state(self, state: dict[str, Any]) -> None:
        self._engine.load_state(state["engine"])


# If the first draw is in inference mode, tensors made in it could not be changed outside of it.
@torch.inference_mode(mode=False)
def _make_engine(
    shares: np.ndarray[tuple[int, ...], np.dtype[np.int32]],
    settings: BanditSettings,
    device: torch.device,
    rng: np.random.Generator,
) -> BanditEngine:
    """The engine for a device: Thompson sampling by states on the CPU, else tensors."""
    by_states = settings.policy == "thompson" and settings.discount is None
    if device.type == "cuda" or not by_states:
        # Not every device can draw Gamma variates, so all but CUDA use the CPU.
        where = device if device.type == "cuda" else torch.device("cpu")
        generator = torch.Generator(where).manual_seed(int(rng.integers(2**63)))
        return DeviceEngine(shares, settings, generator)
    return HostEngine(shares, settings, rng)
