"""Draw records of the paper's experiments: accuracy and training loss against iterations.

    python studies/paper/figure.py studies/paper/small-cifar10.json

A record ``NAME.json`` gives ``NAME.svg`` in the same folder. This needs ``pip install kaleido`` and
Chrome or Chromium.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hpo_mab.compare import figures, read_record

if TYPE_CHECKING:
    import plotly.graph_objects as go


def main(paths: Sequence[str] | None = None) -> None:
    """Draw the records on the command line."""
    for path in map(Path, sys.argv[1:] if paths is None else paths):
        picture(path).write_image(path.with_suffix(".svg"))


def picture(path: Path) -> go.Figure:
    """Validation accuracy and training loss of a record against iterations."""
    from plotly.subplots import make_subplots

    stored = read_record(path)
    seeds = len({run.seed for run in stored.runs})
    batch_size = stored.runs[0].settings.training["batch_size"]
    made = make_subplots(rows=1, cols=2, horizontal_spacing=0.09)
    for column, metric in enumerate(("accuracy", "train_loss"), start=1):
        panel = figures.learning_curves(stored.runs, metric=metric)
        for trace in panel.data:
            shown = column == 1 and trace.showlegend is not False
            iterations = [examples / batch_size for examples in trace.x]
            made.add_trace(trace.update(x=iterations, showlegend=shown), row=1, col=column)
        made.update_xaxes(title_text="iterations", row=1, col=column)
        made.update_yaxes(title_text=panel.layout.yaxis.title.text, row=1, col=column)
    made.update_layout(
        template="plotly_white",
        title=f"{stored.runs[0].settings.data.kind}: mean and 95% interval of {seeds} seeds",
        width=1000,
        height=420,
        margin={"l": 60, "r": 20, "t": 60, "b": 60},
    )
    return made


if __name__ == "__main__":
    main()
