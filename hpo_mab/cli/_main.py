"""Entry point: commands; errors are one line with exit status 2."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from typing import Any, TextIO

import typer
from typer.core import TyperGroup

from hpo_mab._errors import HpoMabError, hide_passwords, memory_reason
from hpo_mab.cli._compare import compare
from hpo_mab.cli._dashboard import dashboard
from hpo_mab.cli._examples import examples
from hpo_mab.cli._report import evidence, report, studies
from hpo_mab.cli._run import run
from hpo_mab.cli._worker import copy, replay, worker


class _QuickHelp(TyperGroup):
    """A group with fast help, whose error messages quote no password."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        # Importing rich takes longer than the rest of ``hpo-mab --help``; only the help of a
        # command uses it.
        self.rich_markup_mode = None
        super().format_help(ctx, formatter)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            # The error message of a mistyped command line quotes it.
            if isinstance(message := getattr(error, "message", None), str):
                setattr(error, "message", hide_passwords(message))  # noqa: B010 - Typer's own
            raise


app = typer.Typer(
    name="hpo-mab",
    cls=_QuickHelp,
    help="Hyperparameter search on a budget: trials that cannot win stop early, and a bandit can "
    "pick the mini-batches. `compare` measures whether that helps on your data.",
    epilog="Start with `hpo-mab run`. `hpo-mab COMMAND --help` shows examples. Where a data set, "
    "network, sampler or pruner is named, package.module:Name is your own.",
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
app.command(name="examples")(examples)
app.command(name="replay")(replay)
app.command(name="studies")(studies)
app.command(name="copy")(copy)
app.command(name="dashboard")(dashboard)


def _in_one_line(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Show a warning, one of this package without its place in the code."""
    if category.__module__.startswith("hpo_mab."):
        print(f"hpo-mab: {hide_passwords(str(message))}", file=sys.stderr)
    else:
        text = warnings.formatwarning(message, category, filename, lineno, line)
        print(text, end="", file=file or sys.stderr)


def main() -> None:
    """Run the command line and exit.

    Exit status: 0 success, 2 an error of the user, 130 interrupted.
    """
    if "" not in sys.path:
        # As `python -m` does: a definition may name modules in the current folder.
        sys.path.append("")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _in_one_line
            app(prog_name="hpo-mab")  # However it was started.
    except HpoMabError as error:
        message = hide_passwords(" ".join(str(error).split()))
        print(f"hpo-mab: {message}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader (head, less) has ended; Python must not raise again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        line = _outside_cause(error)
        if line is None:
            raise
        print(f"hpo-mab: {line}", file=sys.stderr)
        sys.exit(2)


def _outside_cause(error: Exception) -> str | None:
    """An error of a database, a disk or memory in one line; None for a bug of this package."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" for {error.filename}" if error.filename else ""
        return (
            f"{error.strerror}{where}. Free some space and run the same command again; stored "
            "trials are kept."
        )
    starved = memory_reason(error)
    if starved is not None:
        return f"{starved} Use a smaller network, smaller batches or fewer workers."
    # Without SQLAlchemy imported, nothing can have raised a storage error.
    if "sqlalchemy" not in sys.modules:
        return None
    from hpo_mab.storage import STORAGE_ERRORS
    from hpo_mab.storage._process import diagnose

    return f"The storage failed: {diagnose(error)}" if isinstance(error, STORAGE_ERRORS) else None
