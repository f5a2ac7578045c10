"""What users need to test their own samplers; needs pytest (extra ``test``)."""

from __future__ import annotations

from hpo_mab.testing._sampler_contract import SamplerContract

__all__ = ["SamplerContract"]
