"""Search the same space for the same time with hpo_mab and with four other tuners.

    python studies/peers/run.py digits --seed 0 1 2 3 4 --minutes 10 --device cpu --out digits.json
    python studies/peers/run.py digits --seed 0 --minutes 2 --restart --out digits-restart.json

If it is interrupted, the same command continues; an arm and seed in the record are not run again.
With --restart each arm is killed after half of its time and started again.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import on_hpo_mab
import on_neps
import on_optuna
import on_ray_tune
import on_syne_tune
from contract import EVALUATIONS, TASKS, Event, Job, Outcome, Peer, by_trial, read_outcome
from shared import resumed, write

HERE = Path(__file__).resolve().parent
PEERS = (on_optuna, on_ray_tune, on_syne_tune, on_neps, on_hpo_mab)
ARMS: Mapping[str, Peer] = {name: arm for module in PEERS for name, arm in module.ARMS.items()}
_FILES = {name: str(HERE / f"{module.__name__}.py") for module in PEERS for name in module.ARMS}
#: Seeds of the trainings of an arm's best configuration; no arm uses them.
_FRESH = (90_001, 90_002)
#: Seconds that an arm may take to end after SIGINT.
_GRACE = 30.0
#: Environment variable that marks the processes of an arm, also those of other parents.
_MARK = "HPO_MAB_PEERS_RUN"


class Processes:
    """All processes of an arm: started, measured and ended together.

    Args:
        job: The arm's work.
        each_worker: Whether to start one process per worker.
    """

    def __init__(self, job: Job, *, each_worker: bool) -> None:
        self._mark = f"{_MARK}={job.folder}"
        self.memory = 0
        self.gpu_memory = 0
        self._job = job
        self._ended = threading.Event()
        log = Path(job.folder) / "output.txt"
        environment = {**os.environ, _MARK: job.folder, "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        self._processes = []
        for worker in range(job.workers if each_worker else 1):
            one = dataclasses.replace(job, worker=worker)
            with log.open("ab") as output:
                self._processes.append(
                    subprocess.Popen(
                        [sys.executable, _FILES[job.arm], "search", str(one.save())],
                        cwd=job.folder,
                        env=environment,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        stdin=subprocess.DEVNULL,
                        start_new_session=True,
                    )
                )
        self._watch = threading.Thread(target=self._measure, daemon=True)
        self._watch.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Also after Ctrl-C, which does not reach them: they have their own sessions.
        self.kill()

    def wait(self, until: float) -> None:
        """Wait until all have ended, or until a time."""
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(until - time.time(), 0.0))

    @property
    def crashed(self) -> bool:
        """Whether one has ended with an error."""
        return any(process.poll() for process in self._processes)

    def interrupt(self) -> None:
        """End them by SIGINT, as Ctrl-C does."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
        self.wait(time.time() + _GRACE)

    def kill(self) -> None:
        """Kill all of them and the processes that they have started."""
        while found := list(self._alive()):
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for process in self._processes:
                process.wait()
            time.sleep(0.1)
        self._ended.set()
        self._watch.join()

    def living(self) -> set[int]:
        """Numbers of the processes that live."""
        return set(self._alive())

    def _alive(self) -> Iterator[int]:
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                variables = (folder / "environ").read_bytes().split(b"\0")
                if self._mark.encode() in variables and _state(folder) != "Z":
                    yield int(folder.name)

    def _measure(self) -> None:
        """Keep the largest sum of their memory; shared pages count once."""
        before = _gpu_memory(self._job)
        while not self._ended.wait(1.0):
            self.memory = max(self.memory, sum(_memory(pid) for pid in self._alive()))
            self.gpu_memory = max(self.gpu_memory, _gpu_memory(self._job) - before)


def _state(folder: Path) -> str:
    return (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]


def _memory(pid: int) -> int:
    """Proportional set size of a process, in bytes."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    return 0


def _gpu_memory(job: Job) -> int:
    """Memory in use on the first GPU, in bytes."""
    if job.device != "cuda":
        return 0
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0"]
    return 2**20 * int(subprocess.run(query, capture_output=True, text=True, check=True).stdout)


def search(job: Job) -> tuple[Outcome, dict[str, Any]]:
    """Run an arm to its deadline; returns its outcome and measurements."""
    began = time.time()
    with Processes(job, each_worker=ARMS[job.arm].each_worker) as processes:
        processes.wait(job.deadline)
        crashed = processes.crashed
        # The arm has ended by its own clock, or SIGINT ends it.
        processes.interrupt()
    if crashed:
        output = (Path(job.folder) / "output.txt").read_text(encoding="utf-8", errors="replace")
        raise RuntimeError(f"it ended before its time:\n{output[-2000:]}")
    ended = time.time()
    outcome = _outcome(job)
    measured = {
        "began": began,
        "seconds_to_the_end": round(ended - began, 2),
        "memory": processes.memory,
        "gpu_memory": processes.gpu_memory,
    }
    return outcome, measured


def _outcome(job: Job) -> Outcome:
    return read_outcome(_python(_FILES[job.arm], "outcome", str(job.save()), folder=job.folder))


def _python(*arguments: str, folder: str) -> str:
    """Standard output of a script."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{Path(arguments[0]).name} {arguments[1]}: {done.stderr[-2000:]}")
    return done.stdout


def run(job: Job, *, minutes: float) -> dict[str, Any]:
    """One arm of one seed, for the record."""
    outcome, measured = search(job)
    events = [event for event in outcome.events if event.at <= job.deadline]
    began = measured.pop("began")
    first = [event.at - began for event in events if event.share > 0]
    finished = [event.at - began for event in events if event.share == EVALUATIONS]
    started = {event.trial for event in events if event.share == 0}
    training = sum(event.training for event in events)
    evaluating = sum(event.evaluating for event in events)
    room = 60 * minutes * job.workers
    tests: list[float] = []
    if outcome.config is not None:
        knobs = json.dumps(outcome.config)
        seeds = map(str, _FRESH)
        script = str(HERE / "usual.py")
        tests = json.loads(_python(script, str(job.save()), knobs, *seeds, folder=job.folder))
    return {
        "arm": job.arm,
        "seed": job.seed,
        **measured,
        "started": len(started),
        "finished": len(finished),
        # At most one per worker was not stopped but interrupted by the deadline.
        "stopped": len(started) - len(finished),
        "seconds_to_first_result": min(first, default=None),
        "seconds_to_first_finished": min(finished, default=None),
        "training_seconds": training,
        "evaluation_seconds": evaluating,
        "not_training": 1 - training / room,
        "examples": sum(event.examples for event in events),
        "best": {"config": outcome.config, "accuracy": outcome.accuracy},
        "known": outcome.known,
        "test": tests,
        "finished_trials": finished_trials(events, began=began),
    }


def finished_trials(events: Sequence[Event], *, began: float) -> list[list[float | None]]:
    """Seconds, examples of all trials until then and accuracy of each finished trial."""
    found: list[list[float | None]] = []
    spent = 0
    for event in sorted(events, key=lambda one: one.at):
        spent += event.examples
        if event.share == EVALUATIONS:
            found.append([round(event.at - began, 3), spent, event.accuracy])
    return found


def restart(job: Job, *, minutes: float) -> dict[str, Any]:
    """The trials of an arm after a kill at half time, and after it is started again."""
    half = 30 * minutes
    killed = time.time() + half
    with Processes(job, each_worker=ARMS[job.arm].each_worker) as processes:
        processes.wait(killed)
        living = processes.living()
    before = _outcome(job)
    running = _running(before, living)
    job = dataclasses.replace(job, deadline=time.time() + half)
    after, _ = search(job)
    new = [event for event in after.events if event.at > killed]
    return {
        "arm": job.arm,
        "seed": job.seed,
        "known": before.known,
        "known_at_the_end": after.known,
        "best": before.accuracy,
        "best_at_the_end": after.accuracy,
        "cut_off": [_fate(own, new) for name, own in by_trial(before.events) if name in running],
        "finished_after": sum(event.share == EVALUATIONS for event in new),
    }


def _running(outcome: Outcome, living: Collection[int]) -> set[str]:
    """The trials that were running when the processes that lived were killed."""
    if outcome.running is not None:
        return set(outcome.running)
    # One process a trial. Events are in the order of time, so the last of each process remains.
    last = {event.process: event for event in outcome.events}
    return {
        event.trial
        for process, event in last.items()
        if process in living and event.share < EVALUATIONS
    }


def _fate(own: Sequence[Event], new: Sequence[Event]) -> str:
    """Whether a trial's configuration is trained again, and from which evaluation."""
    again = {event.trial for event in new if event.share == 0 and event.config == own[0].config}
    shares = [event.share for event in new if event.trial in again and event.share > 0]
    if not shares:
        return "lost"
    return "continued" if min(shares) > 1 else "started again"


def environment(arms: Sequence[str]) -> dict[str, Any]:
    """Versions and hardware."""
    from hpo_mab._machine import environment

    packages = sorted({name for arm in arms for name in ARMS[arm].packages} | {"torch", "numpy"})
    versions = {name: importlib.metadata.version(name) for name in packages}
    return environment() | {"packages": versions, "kernel": platform.release()}


def merged(known: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """An environment with the versions of the arms that were run before as well."""
    versions = {**known.get("packages", {}), **new["packages"]}
    return {**known, **new, "packages": versions}


def main() -> None:
    """Read the command line, and run the jobs that are not in the record."""
    options = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # A background job of a shell ignores SIGINT, and the arms would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    out: Path = options.out.resolve()
    workers = options.workers or _workers(options.device)
    record = resumed(
        out,
        kind="restart" if options.restart else "search",
        task=options.task,
        minutes=options.minutes,
        device=options.device,
        workers=workers,
    )
    record.setdefault("runs", [])
    # pip does this, but not every installer. Otherwise each process compiles its imports.
    compileall.compile_dir(sysconfig.get_path("purelib"), quiet=2, workers=0)
    failed = []
    with tempfile.TemporaryDirectory(prefix="peers-", ignore_cleanup_errors=True) as work:
        for job in _jobs(options, record, Path(work), workers=workers):
            try:
                found = (restart if options.restart else run)(job, minutes=options.minutes)
            except RuntimeError as error:
                # The other arms are run; the same command repeats this one.
                failed.append(job.arm)
                print(f"{job.arm}, seed {job.seed}: {error}", file=sys.stderr, flush=True)
                continue
            finally:
                if options.keep:
                    kept = options.keep / Path(job.folder).name
                    shutil.copytree(job.folder, kept, dirs_exist_ok=True)
            record["environment"] = merged(record.get("environment", {}), environment(options.arm))
            record["runs"].append(found)
            _write(out, record)
            shown = {name: value for name, value in found.items() if name != "finished_trials"}
            print(json.dumps(shown), flush=True)
    if failed:
        raise SystemExit(f"No result of {', '.join(failed)}.")


def _jobs(
    options: argparse.Namespace, record: Mapping[str, Any], work: Path, *, workers: int
) -> Iterator[Job]:
    """Jobs that are not in the record; each deadline counts from when the job is yielded."""
    done = {(each["arm"], each["seed"]) for each in record["runs"]}
    root = str(options.root.resolve())
    for seed in options.seed:
        data = work / f"data-{seed}.pt"
        for arm in options.arm:
            if (arm, seed) in done:
                continue
            if not data.exists():
                from usual import prepare

                prepare(TASKS[options.task], data, root=root, seed=seed)
            folder = work / f"{arm}-{seed}"
            folder.mkdir()
            yield Job(
                arm=arm,
                task=options.task,
                seed=seed,
                deadline=time.time() + 60 * options.minutes,
                device=options.device,
                workers=workers,
                folder=str(folder),
                data=str(data),
                root=root,
            )


def _workers(device: str) -> int:
    """Trainings at a time: one per core, or eight on a GPU."""
    cores = len(os.sched_getaffinity(0))
    return cores if device == "cpu" else min(8, cores)


def _write(out: Path, record: dict[str, Any]) -> None:
    write(out, json.dumps(record, separators=(",", ":")) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="of an arm")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arm", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--root", type=Path, default=Path("data"), help="of torchvision's data")
    parser.add_argument("--workers", type=int, help="trainings at a time; default one a core, or 8")
    parser.add_argument("--restart", action="store_true", help="kill and start each arm again")
    parser.add_argument("--keep", type=Path, help="folder for copies of the arms' own files")
    return parser


if __name__ == "__main__":
    main()
