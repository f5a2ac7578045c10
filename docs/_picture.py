"""Draw the README's picture from its record: ``python docs/_picture.py`` (extra ``docs``)."""

from __future__ import annotations

from pathlib import Path

from hpo_mab.compare import figures, read_record

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "studies/fashion_mnist/pruning.json"
PICTURE = ROOT / "docs/images/fashion_mnist.svg"
ARMS = ("uniform_hyperband", "mab_advantage")


def main() -> None:
    """Write the picture."""
    runs = [run for run in read_record(RECORD).runs if run.arm in ARMS]
    drawn = figures.anytime_incumbent(runs)
    drawn.update_layout(
        title="Fashion-MNIST: best configuration found so far, median and range of 5 seeds",
        width=860,
        height=380,
    )
    PICTURE.parent.mkdir(exist_ok=True)
    drawn.write_image(PICTURE)


if __name__ == "__main__":
    main()
