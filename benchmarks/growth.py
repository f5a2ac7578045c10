"""How time and memory grow with the numbers of examples and bandits.

    python benchmarks/growth.py --json growth.json --figure growth.svg

One CPU thread, CPU seconds, medians: time of draw, update and set-up of the samplers, and their
memory. ``storage_load.py long`` measures growth in trials.
"""

from __future__ import annotations

import argparse
import pickle
import statistics
import time
from pathlib import Path
from typing import Any

import _shared
import numpy as np
import torch

from hpo_mab import samplers
from hpo_mab.compare.figures._style import colours

BANDITS = (32, 128, 512, 1024, 4096)
EXAMPLES = (10_000, 100_000, 1_000_000, 10_000_000)
ARMS = 390
KINDS = ("uniform", "mab")


def drawing(kind: str, *, examples: int, bandits: int, steps: int) -> dict[str, Any]:
    """Cost of a sampler, by the numbers of examples and bandits."""
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, 10, examples))
    losses = torch.from_numpy(rng.exponential(size=examples).astype(np.float32))
    started = time.process_time()
    sampler = samplers.create(kind, labels, batch_size=bandits)
    sampler.draw()  # Makes what later draws need.
    sampler.discard()
    made = time.process_time() - started
    times = [_shared.draw_and_update(sampler, losses.__getitem__) for _ in range(3 * steps)]
    held = len(pickle.dumps(sampler)) - sampler.labels.nbytes
    return {
        "kind": kind,
        "examples": examples,
        "bandits": bandits,
        "step_ms": 1e3 * statistics.median(times[2 * steps :]),
        "setup_s": made,
        "bytes_an_example": held / examples,
    }


def measure(*, scale: float) -> dict[str, list[dict[str, Any]]]:
    """All figures; ``scale`` below 1 leaves out sizes above that share of the largest."""
    examples = [n for n in EXAMPLES if n <= scale * EXAMPLES[-1]]
    bandits = [n for n in BANDITS if n <= scale * BANDITS[-1]]
    steps = 100 if scale == 1 else 5
    return {
        "examples": [
            drawing(kind, examples=n, bandits=min(128, n), steps=steps)
            for kind in KINDS
            for n in examples or [1_000]
        ],
        "bandits": [
            drawing(kind, examples=n * ARMS, bandits=n, steps=steps)
            for kind in KINDS
            for n in bandits or [8]
        ],
    }


def tables(figures: dict[str, list[dict[str, Any]]]) -> str:
    """Two Markdown tables."""
    text = []
    for what in ("examples", "bandits"):
        rows = [
            (
                row["kind"],
                f"{row['examples']:,}",
                f"{row['bandits']:,}",
                f"{row['step_ms']:.3f}",
                f"{row['setup_s']:.2f}",
                f"{row['bytes_an_example']:.1f}",
            )
            for row in figures[what]
        ]
        head = ("sampler", "examples", "bandits", "draw + update, ms", "set-up, s", "bytes/example")
        text.append(_shared.table(head, rows))
    return "\n\n".join(text)


def draw_figure(figures: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Two panels of lines on logarithmic axes, as a picture."""
    from plotly import graph_objects as go
    from plotly.subplots import make_subplots

    figure = make_subplots(cols=2, subplot_titles=("examples", "bandits"))
    for column, what in enumerate(("examples", "bandits"), 1):
        for kind in KINDS:
            rows = [row for row in figures[what] if row["kind"] == kind]
            trace = go.Scatter(
                x=[row[what] for row in rows],
                y=[row["step_ms"] for row in rows],
                name=kind,
                legendgroup=kind,
                showlegend=what != "bandits",
                line={"color": colours(KINDS)[kind]},
                mode="lines+markers",
            )
            figure.add_trace(trace, row=1, col=column)
        figure.update_xaxes(type="log", title=what, row=1, col=column)
        figure.update_yaxes(type="log", title="ms a draw and update", row=1, col=column)
    figure.update_layout(width=800, height=380, template="plotly_white", margin={"t": 40})
    figure.write_image(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the largest sizes")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures = measure(scale=options.scale)
    print(tables(figures))
    _shared.write_json(options.json, {"growth": figures})
    if options.figure:
        draw_figure(figures, options.figure)


if __name__ == "__main__":
    main()
