"""What users need to test their own samplers; needs pytest (``pip install hpo_mab[test]``)."""

from __future__ import annotations

from hpo_mab.testing._sampler_contract import SamplerContract

__all__ = ["SamplerContract"]
