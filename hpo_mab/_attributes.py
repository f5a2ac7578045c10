"""What the package keeps in the attributes of Optuna's studies and trials.

User attributes of a trial, which everybody may read:

- ``slot``: its place in the study's plan, from 0; a retry and a twin have that of the trial they
  repeat. ``paired``: every arm of a comparison trains its configuration.
- ``sampler``: what chose its batches, where that is not the definition's. ``twin_of``: the slot it
  repeats under uniform sampling. ``promotes``: number of the stopped trial that it trains in full.
- ``examples``, ``seconds``: what its curve has cost. ``resumed_at``: how many evaluations of the
  curve an earlier attempt had made.
- ``reason``: why it failed or diverged. ``pruned_because``: by which rung it was pruned.
  ``interrupted``, ``lost``: it was cut off, and is tried again.

User attributes of a study are the constants below that begin with ``hpo_mab:``.
"""

SAMPLER_KEY = "sampler"
#: The sampler, also of an arm, that all others are compared with.
UNIFORM = "uniform"
TWIN_KEY = "twin_of"
PROMOTES_KEY = "promotes"
RESUMED_KEY = "resumed_at"
#: Number of a trial's learning curve, a system attribute, see `hpo_mab.storage.CurveStore`.
CURVE_KEY = "hpo_mab:curve"

#: What the study was made from, see `hpo_mab.storage.Definition`.
DEFINITION_KEY = "hpo_mab:definition"
#: What its trials are to reach, see `hpo_mab.search.Target`.
TARGET_KEY = "hpo_mab:target"
#: The evidence its pruner uses, see `hpo_mab.advantage.Evidence`.
EVIDENCE_KEY = "hpo_mab:evidence"
#: What ``sampler.kind = "auto"`` chose, and why.
CHOICE_KEY = "hpo_mab:auto"
#: Test accuracy of the best trial's network: ``{"trial": number, "accuracy": float}``.
TEST_KEY = "hpo_mab:test"
#: How far a study's notes and figures have been written, a system attribute.
PUBLISHED_KEY = "hpo_mab:published"
#: Test accuracies of the best configuration, trained again: ``trial``, ``budget``, ``accuracies``.
RETRAINED_KEY = "hpo_mab:retrained"
