"""Entry point: commands, and errors in one line with exit status 2."""

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
    """A group whose help comes at once, and whose complaints quote no password."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        # Rich takes longer to import than all the rest of ``hpo-mab --help``; the commands' pages
        # are the ones worth boxes.
        self.rich_markup_mode = None
        super().format_help(ctx, formatter)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            # What is said of a mistyped command line quotes it.
            if isinstance(message := getattr(error, "message", None), str):
                setattr(error, "message", hide_passwords(message))  # noqa: B010 - Typer's own
            raise


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
    """Show a warning; of our own, without the place in the code, which is not the user's."""
    if category.__module__.startswith("hpo_mab."):
        print(f"hpo-mab: {hide_passwords(str(message))}", file=sys.stderr)
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
            app(prog_name="hpo-mab")  # However it was started.
    except HpoMabError as error:
        message = hide_passwords(" ".join(str(error).split()))
        print(f"hpo-mab: {message}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader (head, less) has gone; Python must not complain again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        line = _outside_cause(error)
        if line is None:
            raise
        print(f"hpo-mab: {line}", file=sys.stderr)
        sys.exit(2)


def _outside_cause(error: Exception) -> str | None:
    """What a database, a disk or memory did to us, in one line; None for a mistake of our own."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" for {error.filename}" if error.filename else ""
        return (
            f"{error.strerror}{where}. Free some space, then give the same command again; what is "
            "stored stays."
        )
    starved = memory_reason(error)
    if starved is not None:
        return f"{starved} Smaller networks and batches need less, and so do fewer workers."
    # Where nothing has been imported that raises them, it is none of them.
    if "sqlalchemy" not in sys.modules:
        return None
    from hpo_mab.storage import STORAGE_ERRORS
    from hpo_mab.storage._process import diagnose

    return f"The storage failed: {diagnose(error)}" if isinstance(error, STORAGE_ERRORS) else None
