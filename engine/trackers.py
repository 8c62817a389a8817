"""A run's metrics to TensorBoard, Weights & Biases and trackio.

metrics.jsonl and eval.jsonl stay the truth. A tracker holds the same rows, each once: one that is resumed
goes on after what it holds, one that is added later is given what it lacks, one that fails is noted and left.
"""

import contextlib
import importlib.util
import io
import math
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from verigrad.engine.config import Config, ConfigError
from verigrad.engine.failures import WorkError

Rows = Sequence[Mapping[str, Any]]


class TrackerError(WorkError):
    """A tracker that the recipe asks for did not start."""


@dataclass(frozen=True, slots=True)
class Held:
    """The last step whose row a tracker already holds, of each kind; -1 is none."""

    metrics: int = -1
    evals: int = -1
    note: str = ""  # for people: where to look


class Tracker(Protocol):
    """One library that shows curves."""

    def start(self, cfg: Config, folder: Path, name: str, *, first_step: int) -> Held:
        """Open the run in `folder`, or take it up again before `first_step`; says what it holds already."""
        ...

    def log(self, step: int, metrics: Mapping[str, float], *, is_eval: bool) -> None:
        """Record finite numbers of one step."""
        ...

    def close(self, *, failed: bool) -> None:
        """Write out what is buffered, and end."""
        ...


class TensorBoard:
    """Event files in FOLDER/tensorboard."""

    def start(self, cfg: Config, folder: Path, name: str, *, first_step: int) -> Held:
        """See Tracker.start. Readers hide what an earlier process wrote from `first_step` on."""
        from torch.utils.tensorboard import SummaryWriter

        place, anew = folder / "tensorboard", first_step == 1
        fresh = not place.exists()
        writer_of: Any = SummaryWriter  # torch leaves it without types
        self.writer = writer_of(str(place), purge_step=None if fresh else 0 if anew else first_step)
        return Held() if fresh or anew else Held(first_step - 1, first_step - 1)

    def log(self, step: int, metrics: Mapping[str, float], *, is_eval: bool) -> None:
        """See Tracker.log. On disk before it returns: a kill loses no point."""
        for key, value in metrics.items():
            self.writer.add_scalar(key, value, step)
        self.writer.flush()

    def close(self, *, failed: bool) -> None:
        """See Tracker.close."""
        self.writer.close()


class WandB:
    """Weights & Biases; offline where no account is known, with its files in FOLDER/wandb."""

    def start(self, cfg: Config, folder: Path, name: str, *, first_step: int) -> Held:
        """See Tracker.start. The run's id lies in the folder; online, the service says how far it got."""
        place = folder / "wandb"
        place.mkdir(exist_ok=True)
        os.environ.setdefault("WANDB_CACHE_DIR", str(place / "cache"))
        import wandb

        id_file = place / "verigrad_run_id"
        if not id_file.exists():
            id_file.write_text(uuid.uuid4().hex[:8])
        run_id = id_file.read_text().strip()
        offline = os.environ.get("WANDB_MODE", "") == "offline" or not wandb.login(prompt=False)
        held = _forget_offline(place, run_id, first_step=first_step) if offline else Held()
        self.run = wandb.init(
            project=cfg.run.project,
            name=name,
            id=run_id,
            dir=str(folder),
            config=cfg.model_dump(mode="json"),
            settings=wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True),
            mode="offline" if offline else None,
            resume=None if offline else "allow",
        )
        self.run.define_metric("*", step_metric="step")
        self.run.define_metric("eval/*", step_metric="eval/step")
        if offline:
            written = Path(self.run.dir).parent
            return replace(held, note=f"offline; `wandb sync {written}` sends it to an account")
        steps, evals = (self.run.summary.get(key) for key in ("step", "eval/step"))
        return Held(
            metrics=-1 if steps is None else int(steps),
            evals=-1 if evals is None else int(evals),
            note=self.run.url or "",
        )

    def log(self, step: int, metrics: Mapping[str, float], *, is_eval: bool) -> None:
        """See Tracker.log. The step is a metric of its own: wandb's counts rows, and never goes back."""
        self.run.log({"eval/step" if is_eval else "step": step, **metrics})

    def close(self, *, failed: bool) -> None:
        """See Tracker.close."""
        self.run.finish(exit_code=int(failed))


def _forget_offline(place: Path, run_id: str, *, first_step: int) -> Held:
    """Clear what a killed process wrote for a later `wandb sync`; it comes anew, whole, from metrics.jsonl.

    A killed process loses what it had not written out. What was synced already is in the service, and stays.
    """
    earlier = [path for path in place.glob(f"offline-run-*-{run_id}") if path.is_dir()]
    if any(any(path.glob("*.synced")) for path in earlier):
        return Held(first_step - 1, first_step - 1)
    for path in earlier:
        shutil.rmtree(path)
    return Held()


class Trackio:
    """trackio; a database in FOLDER/trackio, unless TRACKIO_DIR or a Space is set in the environment."""

    def start(self, cfg: Config, folder: Path, name: str, *, first_step: int) -> Held:
        """See Tracker.start. A local database says how far it got; of a Space it is taken to be all."""
        place = folder / "trackio"
        fresh = not place.exists()
        place.mkdir(exist_ok=True)
        os.environ.setdefault("TRACKIO_DIR", str(place.resolve()))  # read when trackio is first imported
        import trackio
        from trackio.sqlite_storage import SQLiteStorage
        from trackio.utils import TRACKIO_DIR

        if TRACKIO_DIR.resolve() != Path(os.environ["TRACKIO_DIR"]).resolve():
            raise RuntimeError(f"this process already uses trackio with {TRACKIO_DIR}")
        with contextlib.redirect_stdout(io.StringIO()):
            self.run = trackio.init(
                project=cfg.run.project,
                name=name,
                resume="never" if fresh else "allow",
                config=cfg.model_dump(mode="json"),
                embed=False,
            )
        if fresh:
            return Held()
        if any(os.environ.get(key) for key in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")):
            return Held(first_step - 1, first_step - 1)
        rows = SQLiteStorage.get_logs(cfg.run.project, name, run_id=self.run.id)
        steps: dict[bool, list[int]] = {True: [-1], False: [-1]}
        for row in rows:
            steps[any(key.startswith("eval/") for key in row)].append(row["step"])
        return Held(max(steps[False]), max(steps[True]))

    def log(self, step: int, metrics: Mapping[str, float], *, is_eval: bool) -> None:
        """See Tracker.log. Written by a thread of trackio's, within half a second."""
        self.run.log(dict(metrics), step=step)

    def close(self, *, failed: bool) -> None:
        """See Tracker.close."""
        import trackio

        with contextlib.redirect_stdout(io.StringIO()):
            trackio.finish()  # not the run's own: this one is not called again when the process ends


TRACKERS: Mapping[str, type[TensorBoard] | type[WandB] | type[Trackio]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
}
"""Name in run.trackers, which is also the package it needs -> what it opens."""


def require_installed(names: Iterable[str]) -> None:
    """Raise ConfigError when the package of a tracker is missing; imports nothing."""
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        raise ConfigError(
            f"run.trackers asks for {', '.join(missing)}, which is not installed; "
            "run `pip install verigrad[trackers]`, or take it out of run.trackers"
        )


class Trackers:
    """All trackers of a run; without any, nothing happens."""

    def __init__(
        self,
        cfg: Config,
        folder: Path,
        *,
        first_step: int,
        metrics: Rows,
        evals: Rows,
        note: Callable[[str], None],
    ) -> None:
        """Start them and give each the recorded rows it lacks. Raises TrackerError."""
        self.note = note
        self.open: dict[str, tuple[Tracker, Held]] = {}
        for name in cfg.run.trackers:
            tracker: Tracker = TRACKERS[name]()
            try:
                held = tracker.start(cfg, folder, folder.resolve().name, first_step=first_step)
            except Exception as error:
                self.close(failed=True)
                raise TrackerError(
                    f"run.trackers: {name} did not start ({_told(error)}); mend it, or take it out of "
                    "run.trackers, which a resumed run may do too"
                ) from error
            self.open[name] = tracker, held
            if held.note:
                note(f"{name}: {held.note}")
        for row in metrics:
            self.log_step(row)
        for row in evals:
            self.log_eval(row)

    def log_step(self, row: Mapping[str, Any]) -> None:
        """A row of metrics.jsonl."""
        self._log(int(row["step"]), numbers(row), is_eval=False)

    def log_eval(self, row: Mapping[str, Any]) -> None:
        """A row of eval.jsonl, as eval/DATA/..."""
        self._log(int(row["step"]), numbers(row, prefix=f"eval/{row['data']}/"), is_eval=True)

    def _log(self, step: int, metrics: Mapping[str, float], *, is_eval: bool) -> None:
        for name, (tracker, held) in list(self.open.items()):
            if step <= (held.evals if is_eval else held.metrics):
                continue
            try:
                tracker.log(step, metrics, is_eval=is_eval)
            except Exception as error:
                del self.open[name]
                self.note(
                    f"{name} failed at step {step} ({_told(error)}) and gets nothing more; metrics.jsonl has "
                    "all of it, and the next start of this run tries again"
                )

    def close(self, *, failed: bool) -> None:
        """End them all."""
        for name, (tracker, _) in self.open.items():
            try:
                tracker.close(failed=failed)
            except Exception as error:
                self.note(f"{name} could not be closed ({_told(error)}); its last rows may be missing")
        self.open = {}


def numbers(row: Mapping[str, Any], *, prefix: str = "") -> dict[str, float]:
    """The finite numbers of a row, without its step; {"pass_at": {"8": x}} is pass@8.

    What was not a number is left out, and is a gap in the curve.
    """
    flat: dict[str, float] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            flat |= numbers(
                value, prefix=f"{prefix}{key.replace('_at', '@') if key.endswith('_at') else f'{key}/'}"
            )
        elif isinstance(value, int | float) and math.isfinite(value) and key != "step":
            flat[f"{prefix}{key}"] = float(value)
    return flat


def _told(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
