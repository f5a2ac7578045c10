"""c-SGD: examples in proportion to how undecided the model is about their label."""

from __future__ import annotations

from torch import Tensor

from hpo_mab.samplers._arazo import ArazoSampler
from hpo_mab.samplers._pass import fill_unseen


class CSGDSampler(ArazoSampler):
    """c-SGD (threshold closeness) as Arazo et al. 2021 run it.

    As `PSGDSampler`, with scores ``s_i = a_i (1 - a_i)``, where ``a_i`` is the mean over all visits
    of ``1 - p(true label)``: largest where the model is undecided.

    The published code gives examples never seen the largest ``a``, "to force the model to see all
    the samples", *before* it forms ``a (1 - a)``. Early in training the largest ``a`` is near 1, so
    unseen examples get a score near 0 and are drawn only through the smoothing: the opposite of
    what the comment says. That is the default here, to compare with the published numbers.
    ``corrected = True`` gives unseen examples the largest *score*, and draws with replacement (see
    `PSGDSampler`).

    With ``smoothing = 0`` an example whose ``a`` is exactly 0 or 1 has no chance while others have;
    with any smoothing every example has a positive chance in every pass.

    Source: Arazo, Ortego, Albert, O'Connor, McGuinness, "How important is importance sampling for
    deep budgeted training?", BMVC 2021, and its code, github.com/EricArazo/ImportanceSampling;
    threshold closeness: Chang, Learned-Miller, McCallum, "Active Bias", NIPS 2017.

    Args:
        labels: Class of each training example, integers [N].
        batch_size: Examples a batch, ``B``.
        seed: Seed of every random choice.
        device: Where indices are drawn.
        rank: This process's share among ``world_size``.
        world_size: Number of processes that split the examples.
        budget: Share of the examples drawn a pass, in (0, 1]. Smaller reacts faster.
        smoothing: Uniform part, in means of the scores, at least 0.
        corrected: Whether unseen examples get the largest score, and to draw with replacement.

    Raises:
        ArgumentError: An argument outside its bound.
    """

    def _scores(self) -> Tensor:
        means, seen = self._means()
        if self.corrected:
            return fill_unseen(means * (1 - means), seen)
        filled = fill_unseen(means, seen)
        return filled * (1 - filled)
