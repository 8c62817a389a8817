"""A run's files of rollouts, judged again by the same or another verifier -> what differs."""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from verigrad.engine import rollout_file
from verigrad.engine.config import Config, ConfigError
from verigrad.engine.replay_compare import Comparison, Difference, GroupChange, compare
from verigrad.engine.scoring import Judges, Scorer
from verigrad.engine.screen import printable
from verigrad.verifiers.base import Verdict
from verigrad.verifiers.identity import changes

PIPED_WIDTH = 10_000  # what is read by a program keeps one line per file and group


def run(
    cfg: Config,
    files: Sequence[tuple[Path, str | None]],
    *,
    verifier: str | None,
    options: Mapping[str, Any],
    as_json: bool,
    limit: int,
) -> int:
    """Judge files of (path, held-out set; None: training) again and print what differs; 1 if it does, else 0.

    ConfigError for a verifier that does not fit the rollouts, and for a file that cannot be read.
    """
    other = bool(verifier or options)
    changed: dict[str, list[str]] = {}
    with Judges(cfg) as judges:
        found = []
        for path, data in files:
            scorer, label = _scorer(judges, data, verifier, options), f"{path.parent.name}/{path.name}"
            recorded, groups = _read(path)
            if (
                recorded
                and not other
                and (lines := changes(recorded, json.loads(json.dumps(scorer.identity))))
            ):
                changed.setdefault("; ".join(lines), []).append(label)
            found.append(_replayed(label, groups, scorer))
    if as_json:
        print(json.dumps(_as_json(Path(cfg.run.folder), found, changed, other=other)))
    else:
        _show(_console(), found, changed, other=other, limit=limit)
    return 1 if any(one.differences for one in found) else 0


def _scorer(judges: Judges, data: str | None, verifier: str | None, options: Mapping[str, Any]) -> Scorer:
    """Who judges a file now."""
    if verifier:
        return judges.open(verifier, options, setting="--verifier")
    paying = judges.cfg.verifier
    of_training: tuple[str, Mapping[str, Any], str] = (paying.name, paying.options, "verifier.name")
    name, own, setting = of_training if data is None else judges.choice(data)
    return judges.open(name, {**own, **options}, setting="--option" if options else setting)


def _read(path: Path) -> tuple[dict[str, Any] | None, list[list[rollout_file.Recorded]]]:
    """Who judged a file, and its rollouts group by group."""
    try:
        rows = rollout_file.read_attempts(path)
        groups = [list(group) for _, group in itertools.groupby(rows, key=lambda row: row.group)]
        return rollout_file.read_judge(path), groups
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); restore it, or choose other steps") from error


def _replayed(label: str, groups: Sequence[Sequence[rollout_file.Recorded]], scorer: Scorer) -> Comparison:
    """A file's rollouts judged again, each group in one piece as it was."""
    pending = []
    for rows in groups:
        asked = [row for row in rows if row.episode is None or row.episode.verdict is None]
        try:
            pending.append(scorer.pool.submit(rows[0].problem, [row.attempt for row in asked]))
        except ValueError as error:
            raise ConfigError(
                f"{scorer.setting} = {scorer.name!r} does not fit what {label} holds: {error}"
            ) from error
    now: list[list[Verdict]] = []
    for rows, future in zip(groups, pending, strict=True):
        verdicts = iter(future.result())
        settled = [row.episode.verdict if row.episode else None for row in rows]
        now.append([next(verdicts) if verdict is None else verdict for verdict in settled])
    return compare(label, groups, now)


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
