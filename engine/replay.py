"""`verigrad replay RUN`: recorded rollouts judged again, by the same or another verifier -> what differs."""

import argparse
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from verigrad.engine import rollout_file
from verigrad.engine.config import Config, ConfigError, load
from verigrad.engine.replay_compare import Comparison, Difference, GroupChange, compare
from verigrad.engine.scoring import Judges, Scorer
from verigrad.engine.screen import printable
from verigrad.engine.verify import parse_option
from verigrad.verifiers.base import Verdict
from verigrad.verifiers.identity import changes

TRAIN = "train"  # what --set calls the rollouts that were trained on
PIPED_WIDTH = 10_000  # what is read by a program keeps one line per file and group
FILE = re.compile(r"step_(\d+)(?:_(.+))?\.parquet")
EXAMPLE = """\
examples:
  verigrad replay runs/quickstart
  verigrad replay runs/quickstart --step 12 --set train
  verigrad replay runs/quickstart --verifier my_verifier.py:strict --option tolerance=0.01

RUN is a run folder. Without --verifier and --option the verifiers of the run judge again what they judged:
exit status 0 if every verdict is identical, 1 if one is not. With them: which groups would have been kept or
dropped otherwise, and which rollouts pushed the other way. Nothing in the run folder is changed.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `verigrad replay`."""
    parser.description = "Judge recorded rollouts again, with the run's own verifiers or with another one."
    parser.epilog = EXAMPLE
    add = parser.add_argument
    add("run_folder", metavar="RUN", help="a run folder")
    add("--step", default="all", metavar="N|all", help="one step's rollouts (default: all that are recorded)")
    add("--set", dest="data", metavar="NAME",
        help=f"{TRAIN}: the rollouts of training; else a held-out set (default: all)")  # fmt: skip
    add("--verifier", metavar="V", help="another verifier: a name, path/file.py:name or package.module:name")
    add("--option", action="append", default=[], metavar="KEY=VALUE",
        help="an option of the verifier; repeatable; without --verifier, put over the run's")  # fmt: skip
    add("--num-workers", type=int, metavar="N", help="worker processes (default: the run's)")
    add("--deadline-s", type=float, metavar="S", help="seconds per check (default: the run's)")
    add("--limit", type=int, default=20, metavar="N", help="differences and groups shown (default: 20)")
    add("--json", action="store_true", help="everything as one JSON object on standard output")


@dataclass(frozen=True, slots=True)
class Source:
    """One file of recorded rollouts."""

    path: Path
    step: int
    data: str  # TRAIN, or the held-out set

    @property
    def label(self) -> str:
        """As people are told of it."""
        return f"{self.path.parent.name}/{self.path.name}"


def run(args: argparse.Namespace) -> int:
    """Judge again and report; 0 if all is identical, 1 if something differs."""
    folder = Path(args.run_folder).expanduser()
    cfg = _recipe(folder, args)
    try:
        options = dict(parse_option(text) for text in args.option)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    sources = _sources(folder, args.step, args.data)
    other = bool(args.verifier or options)
    changed: dict[str, list[str]] = {}
    with Judges(cfg) as judges:
        found = []
        for source in sources:
            scorer = _scorer(judges, source, args.verifier, options)
            recorded, groups = _read(source)
            if (
                recorded
                and not other
                and (lines := changes(recorded, json.loads(json.dumps(scorer.identity))))
            ):
                changed.setdefault("; ".join(lines), []).append(source.label)
            found.append(_replayed(source, groups, scorer))
    if args.json:
        print(json.dumps(_as_json(folder, found, changed, other=other)))
    else:
        _show(_console(), found, changed, other=other, limit=args.limit)
    return 1 if any(one.differences for one in found) else 0


def _recipe(folder: Path, args: argparse.Namespace) -> Config:
    """The run's own recipe, with what the words replace; verdicts are never taken from memory."""
    record = folder / "config.toml"
    if not record.is_file():
        raise ConfigError(f"{folder} is no run folder (it has no config.toml); name one, such as runs/NAME")
    words = [f"run.folder={json.dumps(str(folder))}", "verifier.cache=false"]
    if args.num_workers is not None:
        words.append(f"verifier.num_workers={args.num_workers}")
    if args.deadline_s is not None:
        words.append(f"verifier.deadline_s={args.deadline_s}")
    cfg = load(str(record), words)
    if args.verifier and args.deadline_s is None:  # the run's was chosen for another verifier
        own = cfg.verifier.model_copy(update={"deadline_s": None})
        cfg = cfg.model_copy(update={"verifier": own})
    return cfg


def _sources(folder: Path, step: str, data: str | None) -> list[Source]:
    """The files that hold what is asked for, in order of step; ConfigError when there is none."""
    if step != "all" and not step.isdecimal():
        raise ConfigError(f"--step {step}: expected a number or all")
    paths = [*folder.glob("rollouts/step_*.parquet"), *folder.glob("evals/step_*.parquet")]
    matches = [(path, match) for path in paths if (match := FILE.fullmatch(path.name))]
    there = [Source(path, int(match[1]), match[2] or TRAIN) for path, match in matches]
    there.sort(key=lambda source: (source.step, source.data != TRAIN, source.data))
    if not there:
        raise ConfigError(f"{folder} holds no rollouts yet; nothing to judge again")
    wanted = None if step == "all" else int(step)
    chosen = [one for one in there if wanted in (None, one.step) and data in (None, one.data)]
    if not chosen:
        steps, sets = sorted({one.step for one in there}), sorted({one.data for one in there})
        asked = f"--step {step}" + (f" --set {data}" if data else "")
        raise ConfigError(
            f"{folder} has no rollouts for {asked}; it has steps {steps[0]} to {steps[-1]} of "
            f"{', '.join(sets)}"
        )
    return chosen


def _scorer(judges: Judges, source: Source, verifier: str | None, options: Mapping[str, Any]) -> Scorer:
    """Who judges a file now."""
    if verifier:
        return judges.open(verifier, options, setting="--verifier")
    paying = judges.cfg.verifier
    of_training: tuple[str, Mapping[str, Any], str] = (paying.name, paying.options, "verifier.name")
    name, own, setting = of_training if source.data == TRAIN else judges.choice(source.data)
    return judges.open(name, {**own, **options}, setting="--option" if options else setting)


def _read(source: Source) -> tuple[dict[str, Any] | None, list[list[rollout_file.Recorded]]]:
    """Who judged a file, and its rollouts group by group."""
    try:
        rows = rollout_file.read_attempts(source.path)
        groups = [list(group) for _, group in itertools.groupby(rows, key=lambda row: row.group)]
        return rollout_file.read_judge(source.path), groups
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{source.path} cannot be read ({error}); restore it, or choose other steps"
        ) from error


def _replayed(
    source: Source, groups: Sequence[Sequence[rollout_file.Recorded]], scorer: Scorer
) -> Comparison:
    """A file's rollouts judged again, each group in one piece as it was."""
    pending = []
    for rows in groups:
        asked = [row for row in rows if row.episode is None or row.episode.verdict is None]
        try:
            pending.append(scorer.pool.submit(rows[0].problem, [row.attempt for row in asked]))
        except ValueError as error:
            raise ConfigError(
                f"{scorer.setting} = {scorer.name!r} does not fit what {source.label} holds: {error}"
            ) from error
    now: list[list[Verdict]] = []
    for rows, future in zip(groups, pending, strict=True):
        verdicts = iter(future.result())
        settled = [row.episode.verdict if row.episode else None for row in rows]
        now.append([next(verdicts) if verdict is None else verdict for verdict in settled])
    return compare(source.label, groups, now)


def _as_json(
    folder: Path, found: Sequence[Comparison], changed: Mapping[str, Sequence[str]], *, other: bool
) -> dict[str, Any]:
    return {
        "run": str(folder),
        "other_verifier": other,
        "identical": not any(one.differences for one in found),
        "num_rollouts": sum(one.num_rollouts for one in found),
        "verifier_changed": [{"what": what, "files": list(files)} for what, files in changed.items()],
        "files": [one.to_json() for one in found],
    }


def _show(
    console: Console,
    found: Sequence[Comparison],
    changed: Mapping[str, Sequence[str]],
    *,
    other: bool,
    limit: int,
) -> None:
    for what, files in changed.items():
        where = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more files"
        console.print(escape(f"the verifier is not the one that judged {where}: {what}"), soft_wrap=True)
    differences = [one for file in found for one in file.differences]
    total = sum(file.num_rollouts for file in found)
    if reworded := sum(file.num_reworded for file in found):
        console.print(f"{reworded} reasons are worded otherwise, their verdicts are the same")
    if settled := sum(file.num_settled for file in found):
        console.print(f"{settled} episodes ended without a state to judge; no verifier was asked")
    if not differences:
        console.print(f"identical: {total} verdicts in {len(found)} file{'s' * (len(found) != 1)}")
        return
    num_files = sum(bool(file.differences) for file in found)
    console.print(f"{len(differences)} of {total} verdicts differ, in {num_files} of {len(found)} files")
    console.print(_files_table(found))
    flips = [group for file in found for group in file.groups if group.flips]
    if flips:
        console.print(_groups_table(flips, limit))
    if not other or not flips:
        console.print(_differences_table(differences, limit))


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PIPED_WIDTH)


def _files_table(found: Sequence[Comparison]) -> Table:
    table = Table(title="files with differences", title_justify="left", box=None, padding=(0, 1))
    for name in (
        "file",
        "rollouts",
        "differ",
        "reward",
        "groups",
        "kept -> dropped",
        "dropped -> kept",
        "flip",
    ):
        table.add_column(name, justify="left" if name == "file" else "right")
    for one in found:
        if one.differences:
            table.add_row(
                one.file,
                str(one.num_rollouts),
                str(len(one.differences)),
                f"{_number(one.old_reward)} -> {_number(one.new_reward)}",
                str(one.num_groups),
                str(sum(group.old_kept and not group.new_kept for group in one.groups)),
                str(sum(group.new_kept and not group.old_kept for group in one.groups)),
                str(sum(group.flips for group in one.groups)),
            )
    return table


def _groups_table(flips: Sequence[GroupChange], limit: int) -> Table:
    shown = sorted(flips, key=lambda group: (-group.num_flipped, group.step, group.group))[:limit]
    title = f"groups that flip, {len(shown)} of {len(flips)}"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1))
    for name in ("step", "group", "problem", "mean reward", "was", "now", "signs that change"):
        table.add_column(name, justify="left" if name in ("problem", "was", "now") else "right")
    for one in shown:
        kept = ["kept" if kept else "dropped" for kept in (one.old_kept, one.new_kept)]
        means = f"{_number(one.old_mean)} -> {_number(one.new_mean)}"
        table.add_row(
            str(one.step), str(one.group), _cell(one.problem_id), means, *kept, str(one.num_flipped)
        )
    return table


def _differences_table(differences: Sequence[Difference], limit: int) -> Table:
    title = f"verdicts that differ, {min(limit, len(differences))} of {len(differences)}"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1))
    for name in ("step", "group", "index", "problem", "was", "now"):
        table.add_column(name, overflow="fold")
    for one in differences[:limit]:
        place = (str(one.step), str(one.group), str(one.index), _cell(one.problem_id))
        table.add_row(*place, _verdict(one.old, one.what), _verdict(one.new, one.what))
    return table


def _verdict(verdict: Verdict, what: Sequence[str]) -> str:
    """Outcome and reward, what else differs, and the reason."""
    words = [verdict.outcome if verdict.reward is None else f"{verdict.outcome} {verdict.reward:g}"]
    if "parts" in what:
        words.append(json.dumps(dict(verdict.parts)))
    if "extracted" in what:
        words.append(f"read as {verdict.extracted!r:.60}")
    return _cell(", ".join(words) + (f": {verdict.reason}" if verdict.reason else ""))


def _cell(text: str) -> str:
    return escape(printable(" ".join(text.split())[:160]))


def _number(value: float | None) -> str:
    return "undecided" if value is None else f"{value:.3f}"
