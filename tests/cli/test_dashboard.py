from __future__ import annotations

import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import optuna

from hpo_mab.storage import Storage


def test_the_dashboard_serves_the_storage_on_loopback_and_a_free_port(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    storage = Storage(url)
    optuna.create_study(study_name="stored", storage=storage.optuna)
    storage.close()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "hpo_mab", "dashboard", "--storage", url]
        with subprocess.Popen(
            [*command, "--port", str(port)], stdout=subprocess.PIPE, text=True
        ) as server:
            try:
                assert server.stdout is not None
                line = server.stdout.readline()
                address = line.split()[-1]
                assert address.startswith("http://127.0.0.1:")
                assert f":{port}/" not in address
                host, ours = address.removeprefix("http://").rstrip("/").split(":")
                with (
                    socket.create_connection((host, int(ours))),  # Idle: it must not stall others.
                    urllib.request.urlopen(f"{address}api/studies", timeout=240) as answer,
                ):
                    assert '"stored"' in answer.read().decode()
            finally:
                server.terminate()
