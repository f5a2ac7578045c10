"""A password in the storage URL appears in no output, file, database or command line."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote
from wsgiref.simple_server import WSGIServer

import pytest
import sqlalchemy as sa
from tools import answer

from hpo_mab.storage import Storage

Cli = Callable[..., "tuple[int, str, str]"]
#: As it is and as it is written in a URL.
PASSWORD = "hunter2/4@ever"
SECRETS = ("hunter2", "4@ever", quote(PASSWORD, safe=""))
NAME = "tiny-mab-seed0"


@pytest.fixture
def url(postgres_url: str) -> str:
    """A real server's URL; the server accepts every password."""
    assert "postgres:@" in postgres_url
    return postgres_url.replace("postgres:@", f"postgres:{quote(PASSWORD, safe='')}@")


@pytest.fixture
def cmdlines() -> Iterator[set[bytes]]:
    """Command lines of all other processes that start during the test."""
    seen: set[bytes] = set()
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.1):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                if path.parent.name != str(os.getpid()):
                    try:
                        seen.add(path.read_bytes())
                    except OSError:
                        continue

    watcher = threading.Thread(target=look)
    watcher.start()
    yield seen
    over.set()
    watcher.join()


def _holds_none(what: str, text: str) -> None:
    for secret in SECRETS:
        assert secret not in text, f"{what}: {text[max(0, text.index(secret) - 200) :][:400]}"


def _database(url: str) -> Iterator[tuple[str, str]]:
    """Every value of every table."""
    engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    meta = sa.MetaData()
    with engine.connect() as connection:
        meta.reflect(connection)
        for table in meta.sorted_tables:
            for row in connection.execute(sa.select(table)).mappings():
                yield table.name, str(dict(row))
    engine.dispose()


def _pages(url: str) -> Iterator[tuple[str, str]]:
    from hpo_mab.dashboard import application

    storage = Storage(url)
    pages = application(storage)
    for path in ("/dashboard", "/api/meta", "/api/studies", "/api/studies/1", "/api/nowhere"):
        body = answer(pages, path, errors := io.StringIO()).decode()
        yield path, body + errors.getvalue()
    storage.close()


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc")
def test_no_command_shows_stores_or_hands_on_a_password(
    cli: Cli,
    tiny: str,
    tmp_path: Path,
    url: str,
    cmdlines: set[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def end(_: WSGIServer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(WSGIServer, "serve_forever", end)
    monkeypatch.setenv("HPO_MAB_ARTIFACTS", str(tmp_path / "files"))
    at = ("--storage", url)
    files = ("--record", "record.json", "--report", "report.html")
    commands: list[tuple[str, ...]] = [
        ("run", tiny, "--trials", "1", *at),
        ("run", tiny, "--trials", "2", "--workers", "2", *at),
        ("worker", NAME, *at),
        ("compare", tiny, "--trials", "2", *files, *at),
        ("report", "tiny-*", "-o", "page.html", *at),
        ("report", f"{url}#{NAME}", "-o", "page.html", "--record", "again.json"),
        ("replay", NAME, "0", *at),
        ("confirm", NAME, *at),
        ("studies", *at),
        ("dashboard", "--port", "0", *at),
    ]
    for command in commands:
        status, out, err = cli(*command)
        assert status == 0, (command, err)
        _holds_none(command[0], out + err)
    for file in tmp_path.rglob("*"):
        if file.is_file():
            _holds_none(str(file), file.read_text(errors="replace"))
    rows = list(_database(url))
    assert {"study_user_attributes", "hpo_mab_curves"} <= {table for table, _ in rows}
    for table, row in rows:
        _holds_none(table, row)
    for page, text in _pages(url):
        assert text
        _holds_none(page, text)
    workers = [line for line in cmdlines if b"hpo_mab\0worker" in line]
    assert workers
    for line in cmdlines:
        _holds_none("a command line", line.decode(errors="replace"))


_URLS = (
    f"postgresql://me:{quote(PASSWORD, safe='')}@127.0.0.1:1/studies",
    f"postgresql://me@127.0.0.1:1/studies?sslpassword={quote(PASSWORD, safe='')}",
    f"postgresql://me@127.0.0.1:1/studies?password={quote(PASSWORD, safe='')}&user=me",
    f"postgresql://me:{PASSWORD}@127.0.0.1:1/studies",
    f"nosuch://me:{quote(PASSWORD, safe='')}@127.0.0.1/studies",
    f"postgresql://me:{PASSWORD}@host:port/studies",
    f"postgresql://me@server:{quote(PASSWORD, safe='')}@127.0.0.1:1/studies",
)


@pytest.mark.parametrize("url", _URLS)
def test_no_mistake_shows_a_password(cli: Cli, tiny: str, url: str) -> None:
    at = ("--storage", url)
    every = (
        ("run", tiny, *at),
        (url,),
        ("report", f"{url}#tiny-*"),
        ("run", tiny, "--workers", "2", *at),
        ("compare", tiny, *at),
        ("worker", NAME, *at),
        ("report", "tiny-*", *at),
        ("report", "record.json", f"{url}#tiny-*"),
        ("replay", NAME, "0", *at),
        ("confirm", NAME, *at),
        ("studies", *at),
        ("dashboard", *at),
        # Where it does not belong.
        ("run", url),
        ("studies", url),
        ("run", tiny, "--trials", url),
        ("run", tiny, "--set", url),
        ("run", tiny, "--device", url),
    )
    # A URL is read in one place: of the others three commands are enough.
    for command in every if url == _URLS[0] else every[:3]:
        status, out, err = cli(*command)
        assert status == 2, (command, out, err)
        _holds_none(" ".join(command[:1]), out + err)


def test_the_shell_completes_without_showing_a_password(tmp_path: Path) -> None:
    url = f"postgresql://me:{quote(PASSWORD, safe='')}@127.0.0.1:1/studies"
    line = f"hpo-mab worker --storage {url} "
    asked = {"_HPO_MAB_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": "4"}
    found = subprocess.run(
        [sys.executable, "-m", "hpo_mab"],
        env={**os.environ, **asked, "HPO_MAB_STORAGE": url},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in found.stderr
    _holds_none("completion", found.stdout + found.stderr)
