"""What a person sees while a run goes on: one live bar, sampled answers, and the table at the end."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from verigrad.engine.schema import Evaluation, VerifiedGroup

MARKS = {"right": "[green]right[/]", "error": "[magenta]undecided[/]", "partial": "[yellow]partial[/]"}


class Screen:
    """A live bar on a terminal; plain lines, about twenty of them, anywhere else."""

    def __init__(self, console: Console | None = None) -> None:
        width = None if os.environ.get("COLUMNS") or Console().is_terminal else 110
        self.console = console or Console(width=width, highlight=False)
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24 if self.console.width >= 110 else 10),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._last_line: dict[str, int] = {}

    def __enter__(self) -> "Screen":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """One line of plain text; nothing in it is markup."""
        self.console.print(escape(text), soft_wrap=True)  # else a note of one line is cut at column 110

    def progress(self, text: str, fraction: float) -> None:
        """How far a preparation has come, 0 to 1."""
        self._advance("prepare", text, "", fraction * 100, 100, every=25)
        if fraction >= 1:
            self._last_line.pop("prepare", None)
            if "prepare" in self._tasks:
                self._bar.remove_task(self._tasks.pop("prepare"))

    def step(self, row: Mapping[str, Any], num_steps: int) -> None:
        """One training step done."""
        wide = self.console.width >= 110
        facts = f"reward {_number(row['reward'])}  kept {row['kept_frac']:.0%}"
        if row["undecided_frac"]:
            facts += f"  UNDECIDED {row['undecided_frac']:.0%}"
        if row.get("verify/timeout_frac"):
            facts += f"  TIMED OUT {row['verify/timeout_frac']:.0%}"
        if row.get("verify/restarts"):
            facts += f"  {row['verify/restarts']:.0f} verifier workers killed"
        if math.isfinite(row["entropy"]):
            facts += f"  entropy {row['entropy']:.3f}" if wide else ""
        else:
            facts += "  nothing to train on"
        if wide:
            facts += f"  length {row['completion_tokens_mean']:.0f}  {row['tokens_per_s']:,.0f} tok/s"
        if row.get("skipped_updates"):
            facts += f"  SKIPPED {row['skipped_updates']:.0f} non-finite updates"
        text = f"step {row['step']}/{num_steps}"
        self._advance("train", text, facts, row["step"], num_steps, every=max(1, num_steps // 20))

    def _advance(self, name: str, text: str, facts: str, done: float, total: float, *, every: int) -> None:
        if not self.console.is_terminal:
            part = int(done // every)
            if part > self._last_line.get(name, -1) or done >= total:
                self._last_line[name] = part
                self.say(f"{text}  {facts or f'{done / total:.0%}'}")
            return
        if name not in self._tasks:
            self._tasks[name] = self._bar.add_task(text, total=total, facts="")
        self._bar.update(self._tasks[name], description=text, completed=done, facts=facts)

    def evaluation(self, evaluation: Evaluation) -> None:
        """One evaluation done."""
        row = evaluation.row
        rewards = [reward for group in evaluation.groups for reward in group.correctness]
        self.say(
            f"step {row['step']}: {row['data']} {name_of_score(rewards)} {_number(row['avg'])} "
            f"[{_number(row['avg_low'])}, {_number(row['avg_high'])}] on {row['num_problems']} problems"
            + (f", {row['undecided_frac']:.1%} undecided" if row["undecided_frac"] else "")
        )

    def samples(self, groups: Sequence[VerifiedGroup], *, most: int = 3) -> None:
        """A few prompts with one answer each and its verdict."""
        lengths = [rollout.num_completion_tokens for group in groups for rollout in group.rollouts]
        mean = sum(lengths) / max(1, len(lengths))
        self.console.print(f"[dim]sampled answers, {mean:.1f} tokens on average:[/]")
        table = Table(box=None, padding=(0, 2))
        for column, width in (("prompt", 40), ("answer", 100), ("verdict", 12)):
            table.add_column(column, overflow="fold", max_width=width)
        for group in groups[:most]:
            verdict, rollout = group.verdicts[0], group.rollouts[0]
            prompt = group.problem.prompt
            shown = prompt if isinstance(prompt, str) else str(prompt[-1].get("content", ""))
            mark = MARKS.get(verdict.outcome, f"[red]{verdict.outcome}[/]")
            table.add_row(escape(printable(shown[-200:])), escape(printable(rollout.text[-300:])), mark)
        self.console.print(table)

    def summary(self, rows: Sequence[tuple[str, str]], *, title: str) -> None:
        """The table at the end; the bar stays above it as it last was."""
        self._bar.stop()
        table = Table(title=title, show_header=False, title_justify="left", title_style="bold")
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for name, value in rows:
            table.add_row(escape(name), escape(value))
        self.console.print(table)


def name_of_score(rewards: Iterable[float]) -> str:
    """What a mean of these rewards is called: accuracy where each is right or wrong."""
    return "accuracy" if set(rewards) <= {0.0, 1.0} else "mean reward"


def _number(value: Any) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "undefined"


def printable(text: str) -> str:
    """Text without the control characters by which a model's output could drive the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def relative(path: Path) -> str:
    """A path as short as it can be said from here."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
