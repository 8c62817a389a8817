"""Learning from data that is there: steps, evaluations and checkpoints of `sft`, `prefer` and `reward`.

What is learned is a Task, see below; this file is the loop around it, the same for all, as train.py is RL's.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from verigrad.engine import curve
from verigrad.engine.checkpoint import name_of
from verigrad.engine.config import Config
from verigrad.engine.interrupt import Interrupt
from verigrad.engine.run import Run, RunError
from verigrad.engine.schema import Metrics
from verigrad.engine.screen import Screen, relative

INTERRUPTED = 130
Row = dict[str, Any]


class Batch(Protocol):
    """Whatever is packed for one forward pass."""

    @property
    def input_ids(self) -> torch.Tensor:
        """[T]"""
        ...


class OfflineRun(Run):
    """A run folder whose evaluations have no rollouts and whose tokens are read, not sampled."""

    def __enter__(self) -> "OfflineRun":
        return self

    def log_row(self, row: Mapping[str, Any]) -> None:
        """Record an evaluation in eval.jsonl; it has at least `step` and `data`."""
        self._append("eval.jsonl", row)
        self.trackers.log_eval(row)

    def count_tokens(self, batches: Sequence[Batch]) -> None:
        """Count the tokens of this step, prompts included, for tokens_per_s."""
        self._num_tokens = sum(batch.input_ids.numel() for batch in batches)


class Task(Protocol):
    """What is learned: a model, its data, and what one step does with both."""

    def train_step(self, step: int) -> Metrics:
        """One optimizer step. At least: loss, grad_norm, lr, skipped_updates (0 or 1), epoch."""
        ...

    def evaluate(self, step: int) -> Sequence[Row]:
        """Rows of eval.jsonl, each with at least `step` and `data`; none where nothing is held out."""
        ...

    def tell_evaluation(self, row: Mapping[str, Any]) -> str:
        """An evaluation in one line, for people."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds besides the weights."""
        ...

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up `state`; the weights were loaded when the task was opened."""
        ...

    def save_model(self, folder: Path) -> None:
        """The weights, as a Hugging Face folder, and whatever must be found beside them."""
        ...

    def facts(self) -> Mapping[str, Any]:
        """What environment.json holds besides versions and hardware; a resumed run must share it."""
        ...


OpenTask = Callable[[Config, OfflineRun, Screen], Task]
"""Builds the parts; weights come from run.resume_from where that is not None, its state follows."""
Summary = Callable[[Sequence[Row], Sequence[Row]], list[tuple[str, str]]]
"""Evaluations and metrics of a whole run -> rows of the table at its end; time and folders follow."""


def run_task(cfg: Config, screen: Screen, open_task: OpenTask, summary: Summary) -> int:
    """Train to `train.num_steps`, resuming from the newest whole checkpoint; returns the exit status.

    Killed at any moment and started again, a run records the same metrics as one that never was (all but
    times).
    """
    torch.manual_seed(cfg.train.seed)
    with OfflineRun(cfg) as run:
        tell(run, screen)
        if run.first_step > cfg.train.num_steps:
            screen.say(f"{cfg.run.folder} already holds all {cfg.train.num_steps} steps; nothing left to do")
            return show(run, screen, summary)
        with Interrupt() as interrupt:
            with run.timed("start"):
                task, nonfinite = open_task(cfg, run, screen), 0
                if run.resume_from is not None:
                    nonfinite = resume(task, run.load_state())
                    screen.say(f"resuming after step {run.resume_from[0]}")
            run.record_environment(**task.facts())
            tell(run, screen)
            if run.first_step == 1:
                evaluate(task, run, screen, step=0)
            for step in range(run.first_step, cfg.train.num_steps + 1):
                last = step == cfg.train.num_steps
                with run.timed("total"):
                    metrics = task.train_step(step)
                nonfinite = nonfinite + 1 if metrics["skipped_updates"] else 0
                show_step(run.log_step(step, metrics), screen, cfg)
                if cfg.eval.every and (step % cfg.eval.every == 0 or last):
                    evaluate(task, run, screen, step=step)
                stopping = interrupt.asked and not last
                if stopping or last or step % cfg.run.save_every == 0:
                    with run.timed("save"):
                        saved = run.save(step, state_of(task, nonfinite), task.save_model)
                tell(run, screen)
                if nonfinite >= cfg.train.max_nonfinite_steps:
                    raise RunError(
                        f"{nonfinite} steps in a row had a non-finite loss or gradient and were skipped; "
                        "start a new run with a lower optim.lr"
                    )
                if stopping:
                    done = "saved" if saved else "NOT saved, see above"
                    screen.say(f"stopped after step {step}, {done}; run the same command again to go on")
                    return INTERRUPTED
        if not saved:
            raise RunError(
                "the last checkpoint could not be written; free space, then run the same command again"
            )
        return show(run, screen, summary)


def evaluate(task: Task, run: OfflineRun, screen: Screen, *, step: int) -> None:
    """Measure what is held out, if anything is, and record it."""
    with run.timed("eval"):
        rows = task.evaluate(step)
    for row in rows:
        run.log_row(row)
        screen.say(f"step {step}: {task.tell_evaluation(row)}")


def state_of(task: Task, nonfinite: int) -> dict[str, Any]:
    """What a checkpoint holds besides the weights."""
    return {
        **task.state(),
        "nonfinite_in_row": nonfinite,
        "torch_rng": torch.get_rng_state(),
    }


def resume(task: Task, state: Mapping[str, Any]) -> int:
    """Take up a checkpoint's state; returns how many steps in a row were skipped before it."""
    task.load_state(state)
    torch.set_rng_state(state["torch_rng"])
    return int(state["nonfinite_in_row"])


# Screen ----------------------------------------------------------------------------------------------------


def tell(run: Run, screen: Screen) -> None:
    """Show what the run has noted since the last look."""
    for note in run.take_notes():
        screen.say(f"note: {note}")


def show_step(row: Mapping[str, Any], screen: Screen, cfg: Config) -> None:
    """One step on the bar."""
    step, last = row["step"], cfg.train.num_steps
    skipped = "  SKIPPED a non-finite update" if row["skipped_updates"] else ""
    facts = f"loss {row['loss']:.4f}  epoch {row['epoch']:.2f}  {row['tokens_per_s']:,.0f} tok/s{skipped}"
    screen.progress(f"step {step}/{last}  {facts}", step / last)


def show(run: Run, screen: Screen, summary: Summary) -> int:
    """Print the table at the end, write curve.png, and return exit status 0."""
    evals, metrics = run.evaluations(), run.metrics()
    rows = summary(evals, metrics)
    if metrics:
        rows.append(("epochs", f"{metrics[-1]['epoch']:.2f}"))
    seconds = {k: v for k, v in run.total_seconds().items() if k != "total" and v >= 0.5}
    spent = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    rows.append(("where the time went", spent or "less than a second each"))
    newest = run.checkpoints / name_of(run.cfg.train.num_steps)
    picture = run.folder / "curve.png"
    curve.draw_offline(picture, metrics, evals, title=run.folder.name)
    rows += [("run folder", relative(run.folder)), ("curve", relative(picture)), ("model", relative(newest))]
    screen.summary(rows, title=f"{run.folder.name}: {len(metrics)} steps")
    return 0
