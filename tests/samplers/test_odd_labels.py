"""Unusual but valid label sets: every sampler accepts them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hpo_mab import samplers

STEPS = 25
BATCH = 4

ODD = {
    "a class with one example": [0] * 40 + [1],
    "all labels equal": [3] * 41,
    "labels from anywhere": [7, 1000, -3, 2**40] * 10 + [7],
}


def _stream(kind: str, labels: list[int], classes: Tensor) -> list[list[int]]:
    """Batches of a sampler whose losses depend on nothing but the example drawn."""
    losses = torch.rand(len(labels), generator=torch.Generator().manual_seed(5))
    logits = torch.rand(len(labels), 4, generator=torch.Generator().manual_seed(6))
    # Without a scorer: that of a network needs classes numbered from 0.
    sampler = samplers.create(kind, labels, batch_size=BATCH, seed=3)
    batches = []
    for _ in range(STEPS):
        drawn = sampler.draw()
        batches.append(drawn.tolist())
        sampler.update(losses[drawn], logits=logits[drawn], targets=classes[drawn])
    return batches


@pytest.mark.parametrize("kind", samplers.available())
@pytest.mark.parametrize("odd", ODD)
def test_the_numbers_of_classes_change_no_draw(kind: str, odd: str) -> None:
    labels = ODD[odd]
    classes = torch.unique(torch.tensor(labels), return_inverse=True)[1]
    batches = _stream(kind, labels, classes)
    assert batches == _stream(kind, classes.tolist(), classes)
    assert all(len(batch) == BATCH for batch in batches)
    # They learn from an odd set, too: more than one batch is drawn.
    assert len({index for batch in batches for index in batch}) > 3 * BATCH


def test_the_only_example_of_a_class_is_drawn() -> None:
    labels = ODD["a class with one example"]
    classes = torch.tensor(labels)
    for kind in ("mab", "uniform"):
        drawn = [index for batch in _stream(kind, labels, classes) for index in batch]
        assert 40 in drawn


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_grows_by_tens_of_bytes_an_example() -> None:
    # Not ru_maxrss: a child process begins with its parent's.
    script = """
import re, torch
from pathlib import Path
from hpo_mab import samplers
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
n = 1_000_000
samplers.create("mab", torch.arange(1000) % 10, batch_size=256).draw()
labels = torch.randint(0, 1000, (n,))
before = peak()
sampler = samplers.create("mab", labels, batch_size=256, seed=0)
for _ in range(3):
    sampler.update(torch.rand(len(sampler.draw())))
print((peak() - before) / n)
"""
    found = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    # Ten million examples took 56 bytes each at the peak, the caller's labels not counted.
    assert 10 < float(found.stdout) < 90
