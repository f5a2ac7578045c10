"""Beta-Bernoulli bandits over shares of a data set: selection, propensities, forgetting.

Internal: `hpo_mab.MABSampler` draws with them, and documents their options.
"""
