"""p-SGD: examples in proportion to how unlikely the model finds their label."""

from __future__ import annotations

from torch import Tensor

from hpo_mab.samplers._arazo import ArazoSampler
from hpo_mab.samplers._pass import fill_unseen


class PSGDSampler(ArazoSampler):
    """p-SGD as Arazo et al. 2021 run it.

    Memory ``a_i`` is the mean over all visits of ``1 - p(true label)``, taken from the training
    forward pass: from the logits where `update` gets them, else ``1 - exp(-loss)``. Examples never
    seen get the largest ``a`` of those seen. Scores are ``s_i = a_i``, probabilities

        p_i = (s_i + c) / sum_j (s_j + c),    c = smoothing * mean(s),

    so at ``smoothing = 1`` half of the probability is uniform. Whenever the indices run out,
    ``int(n * budget)`` new ones are drawn *without replacement* and shuffled; losses are not
    re-weighted. Until the first feedback, draws are uniform. Every example has a positive chance in
    every pass.

    ``corrected = True`` draws *with replacement*. Without it, the smaller the share left out, the
    less the probabilities matter: at ``budget = 1`` every example is drawn once a pass, whatever
    its score, and p-SGD is uniform shuffling (a warning says so).

    Deviations: the published code drops the incomplete batch at the end of a pass, here it is
    completed from the next pass; the learning-rate schedule is the training loop's.

    Source: Arazo, Ortego, Albert, O'Connor, McGuinness, "How important is importance sampling for
    deep budgeted training?", BMVC 2021, and its code, github.com/EricArazo/ImportanceSampling.

    Args:
        labels: Class of each training example, integers [N].
        batch_size: Examples a batch, ``B``.
        seed: Seed of every random choice.
        device: Where indices are drawn.
        rank: This process's share among ``world_size``.
        world_size: Number of processes that split the examples.
        budget: Share of the examples drawn a pass, in (0, 1]. Smaller reacts faster.
        smoothing: Uniform part, in means of the scores, at least 0.
        corrected: Whether to draw with replacement.

    Raises:
        ArgumentError: An argument outside its bound.
    """

    def _scores(self) -> Tensor:
        means, seen = self._means()
        return fill_unseen(means, seen)
