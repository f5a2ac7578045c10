"""Entry point: commands, and errors in one line with exit status 2."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any, TextIO

import typer
from typer.core import TyperGroup

from hpo_mab._errors import HpoMabError
from hpo_mab.cli._compare import compare
from hpo_mab.cli._dashboard import dashboard
from hpo_mab.cli._evidence import evidence
from hpo_mab.cli._replay import replay
from hpo_mab.cli._report import report
from hpo_mab.cli._run import run
from hpo_mab.cli._studies import studies
from hpo_mab.cli._worker import worker


class _QuickHelp(TyperGroup):
    """A group whose own help comes at once: its commands' pages are the ones worth boxes."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        # Rich takes longer to import than all the rest of ``hpo-mab --help``.
        self.rich_markup_mode = None
        super().format_help(ctx, formatter)


app = typer.Typer(
    name="hpo-mab",
    cls=_QuickHelp,
    help="Budgeted hyperparameter search with bandit batch sampling, measured against uniform.",
    epilog="Start with `hpo-mab run`; `hpo-mab COMMAND --help` has examples.",
    rich_markup_mode="markdown",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(name="run")(run)
app.command(name="worker")(worker)
app.command(name="compare")(compare)
app.command(name="report")(report)
app.command(name="evidence")(evidence)
app.command(name="replay")(replay)
app.command(name="studies")(studies)
app.command(name="dashboard")(dashboard)


def _in_one_line(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Show a warning; of our own, without the place in the code, which is not the user's."""
    if category.__module__.startswith("hpo_mab."):
        print(f"hpo-mab: {message}", file=sys.stderr)
    else:
        text = warnings.formatwarning(message, category, filename, lineno, line)
        print(text, end="", file=file or sys.stderr)


def main() -> None:
    """Run the command line and exit.

    Exit status: 0 done, 2 a mistake in what was asked, 130 interrupted.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _in_one_line
            app()
    except HpoMabError as error:
        message = " ".join(str(error).split())
        print(f"hpo-mab: {message}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader (head, less) has gone; Python must not complain again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
