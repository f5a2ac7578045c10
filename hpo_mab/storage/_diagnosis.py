"""What a database says went wrong, in one line that tells what to do and shows no password."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote, quote_plus

from hpo_mab._secrets import hide_passwords

if TYPE_CHECKING:
    import sqlalchemy as sa

_FREE = "Free some space, then give the same command again; what is stored stays."
#: What to do about it, by what a database's message holds.
_HINTS = {
    "unable to open database file": "Its folder must exist, and the file must be yours to write.",
    "not a database": "Name another file; this one holds something else.",
    "no module named": "Install that driver, or name another in the URL: mysql+pymysql://...",
    "access denied": "Put the password into HPO_MAB_STORAGE: mysql://user:password@host/name.",
    "unknown database": "Make the database first: CREATE DATABASE NAME.",
    "can't connect to mysql": "Does the server run there, on that port?",
    "can't load plugin": "It should look like sqlite:///studies.db or postgresql://user@host/name.",
    "authentication failed": "Put the password into ~/.pgpass, PGPASSWORD or HPO_MAB_STORAGE.",
    "no password supplied": "Put the password into ~/.pgpass, PGPASSWORD or HPO_MAB_STORAGE.",
    "resolve host": "Check the host in the URL: postgresql://user@host/name.",
    "connection refused": "Does the server run there, on that port?",
    "does not exist": "Make the database first: createdb NAME.",
    "disk is full": _FREE,
    "no space left": _FREE,
    "disk i/o error": "Is the disk full, or gone? Then give the same command again.",
}
#: Server and extra by the module of its driver.
_DRIVERS = {"psycopg": ("PostgreSQL", "postgres"), "pymysql": ("MySQL", "mysql")}


def diagnose(error: BaseException, url: sa.URL | None = None) -> str:
    """Why a database failed.

    Args:
        error: What was raised.
        url: The database's; its password is hidden wherever it stands.
    """
    cause = error.__cause__ or error
    origin = getattr(cause, "orig", None) or cause
    # MySQL's driver gives a number and the text.
    numbered = len(origin.args) == 2 and not isinstance(origin, OSError)
    text = str(origin.args[1] if numbered else origin).strip().splitlines()[0].rstrip(".")
    if isinstance(cause, ModuleNotFoundError) and cause.name in _DRIVERS:
        server, extra = _DRIVERS[cause.name]
        text = f"{server} needs its driver: pip install 'hpo_mab[{extra}]'"
    for secret in _passwords(url):
        text = text.replace(secret, "***")
    hints = [hint for sign, hint in _HINTS.items() if sign in text.lower()]
    return hide_passwords(" ".join([f"{text}.", *hints[:1]]))


def _passwords(url: sa.URL | None) -> list[str]:
    if url is None or not url.password:
        return []
    plain = str(url.password)
    return [plain, quote(plain, safe=""), quote_plus(plain)]
