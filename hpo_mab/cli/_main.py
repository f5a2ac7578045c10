"""Entry point of the commands; errors are one line with exit status 2."""

from __future__ import annotations

import errno
import io
import signal
import sys
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Annotated, Any, TextIO

import typer
from typer.core import TyperGroup

from hpo_mab._errors import HpoMabError, HpoMabWarning, hide_passwords, memory_reason, printable
from hpo_mab.cli._compare import compare
from hpo_mab.cli._confirm import confirm
from hpo_mab.cli._copy import copy
from hpo_mab.cli._dashboard import dashboard
from hpo_mab.cli._evidence import evidence
from hpo_mab.cli._examples import examples
from hpo_mab.cli._replay import replay
from hpo_mab.cli._report import report
from hpo_mab.cli._run import run
from hpo_mab.cli._studies import studies
from hpo_mab.cli._worker import worker

#: What `sys.excepthook` is.
_Hook = Callable[[type[BaseException], BaseException, TracebackType | None], object]


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
        except KeyboardInterrupt:
            # Typer prints nothing on Ctrl-C.
            print("hpo-mab: interrupted.", file=sys.stderr)
            raise


app = typer.Typer(
    name="hpo-mab",
    cls=_QuickHelp,
    help="Hyperparameter search on a budget: trials that fall behind stop early, and a bandit can "
    "pick the mini-batches. `compare` measures whether that helps on your data.",
    epilog="Start with `hpo-mab run`. `hpo-mab COMMAND --help` shows examples. Where a data set, "
    "network, sampler or pruner is named, package.module:Name is your own.",
    rich_markup_mode="markdown",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(requested: bool) -> None:
    if requested:
        from hpo_mab._machine import version_of

        typer.echo(f"hpo-mab {version_of('hpo_mab') or 'not installed'}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Print the version and exit.",
        ),
    ] = False,
) -> None: ...


app.command(name="run")(run)
app.command(name="worker")(worker)
# Longer sentences would be cut in the list of commands.
app.command(
    name="compare",
    short_help="Compare a study with uniform sampling, or several arms.",
)(compare)
app.command(name="confirm", short_help="Train the best configurations again with other seeds.")(
    confirm
)
app.command(name="report", short_help="Compare stored studies in one HTML file.")(report)
app.command(name="evidence", short_help="Save a measured advantage or choice for later studies.")(
    evidence
)
app.command(name="examples", short_help="List likely mislabelled and hard training examples.")(
    examples
)
app.command(name="replay", short_help="Train a recorded trial again and compare the curves.")(
    replay
)
app.command(name="studies", short_help="List studies, the trials of a study, or one trial.")(
    studies
)
app.command(name="copy", short_help="Copy or move a study with its trials, curves and notes.")(copy)
app.command(name="dashboard")(dashboard)


def _print_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning; one of this package is one line, without its place in the code."""
    if issubclass(category, HpoMabWarning):
        print(f"hpo-mab: {printable(hide_passwords(str(message)))}", file=sys.stderr)
    else:
        text = warnings.formatwarning(message, category, filename, lineno, line)
        print(text, end="", file=file or sys.stderr)


def main() -> None:
    """Run the command line and exit.

    Exit status: 0 success; 1 a replay that differs, or a fault of the package; 2 a mistake of the
    user, or a failure of disk, memory or database; 130 interrupted.
    """
    sys.excepthook = _without_interrupts(sys.excepthook)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal's encoding may lack characters of a study's name.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _print_warning
            # Not `app()`, which replaces `sys.excepthook`. `python -m hpo_mab` has the same name.
            typer.main.get_command(app)(prog_name="hpo-mab")
    except HpoMabError as error:
        message = hide_passwords(" ".join(str(error).split()))
        print(f"hpo-mab: {printable(message)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        line = _outside_cause(error)
        if line is None:
            raise
        print(f"hpo-mab: {printable(line)}", file=sys.stderr)
        sys.exit(2)
    finally:
        _end_at_once_on_ctrl_c()


def _without_interrupts(hook: _Hook) -> _Hook:
    """A hook that shows no traceback on Ctrl-C, which may come again after it was caught."""

    def other(kind: type[BaseException], value: BaseException, at: TracebackType | None) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            hook(kind, value, at)

    return other


def _end_at_once_on_ctrl_c() -> None:
    """Let Ctrl-C end the process from now on, as nothing is left to store.

    The interpreter takes a second to end. Ctrl-C would then print a traceback.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _outside_cause(error: Exception) -> str | None:
    """An error of a database, a disk, memory or a text in one line; None for a bug of ours."""
    if isinstance(error, PermissionError) and error.filename:
        return f"{error.filename}: {error.strerror}. Change its permissions, or name another."
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" for {error.filename}" if error.filename else ""
        return (
            f"{error.strerror}{where}. Free some space and run the same command again; stored "
            "trials are kept."
        )
    if isinstance(error, UnicodeEncodeError):
        return f"{error.object!r} holds characters that are not valid Unicode."
    out_of_memory = memory_reason(error)
    if out_of_memory is not None:
        return f"{out_of_memory} Use a smaller network, smaller batches or fewer workers."
    # Without SQLAlchemy imported, nothing can have raised a storage error.
    if "sqlalchemy" not in sys.modules:
        return None
    from hpo_mab.storage._open import STORAGE_ERRORS
    from hpo_mab.storage._process import diagnose

    return f"The storage failed: {diagnose(error)}" if isinstance(error, STORAGE_ERRORS) else None
