"""`verigrad card RUN`: a run's folder -> a model card: what it was made from, how it did, what failed.

Everything in it is read from files the run wrote; what they do not say is said to be unknown.
"""

import argparse
import itertools
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verigrad.engine import checkpoint
from verigrad.engine.config import ConfigError

EXAMPLE = """\
examples:
  verigrad card runs/quickstart
  verigrad card runs/quickstart --effects compared -o MODEL_CARD.md

A run of stages gets one card with a part for each stage.
"""
Json = Mapping[str, Any]
STAGE = re.compile(r"(\d+)_")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `verigrad card`."""
    parser.epilog = EXAMPLE
    add = parser.add_argument
    add("folder", metavar="RUN", help="a run's folder, or that of a recipe of stages")
    add("-o", "--output", metavar="FILE", help="where to write it (default: RUN/model_card.md; - prints it)")
    add(
        "--effects",
        metavar="FOLDER",
        help="what `verigrad eval ... --suite SUITE -o FOLDER` wrote: the side effects of training",
    )


def run(args: argparse.Namespace) -> int:
    """Write the card; returns the exit status."""
    folder = Path(args.folder).expanduser()
    text = card(folder, effects=None if args.effects is None else Path(args.effects).expanduser())
    if args.output == "-":
        print(text, end="")
        return 0
    path = Path(args.output) if args.output else folder / "model_card.md"
    path.write_text(text)
    print(f"written to {path}")
    return 0


@dataclass(frozen=True, slots=True)
class Record:
    """What one command left in its folder."""

    folder: Path
    recipe: Json
    environment: Json
    metrics: Sequence[Json]
    evals: Sequence[Json]
    audit: Json

    @classmethod
    def read(cls, folder: Path) -> "Record":
        """Read it; files that are not there are empty."""
        return cls(
            folder,
            tomllib.loads((folder / "config.toml").read_text()),
            _json(folder / "environment.json"),
            _jsonl(folder / "metrics.jsonl"),
            _jsonl(folder / "eval.jsonl"),
            _json(folder / "audit.json"),
        )

    def get(self, section: str, key: str, default: Any = "") -> Any:
        """A setting of the resolved recipe."""
        return self.recipe.get(section, {}).get(key, default)

    @property
    def verb(self) -> str:
        """The command it was."""
        return next(
            (verb for verb in ("sft", "prefer", "reward", "label", "sample") if verb in self.recipe), "train"
        )


def card(folder: Path, *, effects: Path | None = None) -> str:
    """The whole card; ConfigError in one line where there is no run."""
    records = [Record.read(part) for part in parts_of(folder)]
    found = _effects(effects)
    policies = [one for one in records if one.verb in ("train", "sft", "prefer")]
    start = next((str(one.get("policy", "model")) for one in policies), "unknown")
    blocks = [
        header(records, start),
        f"# {folder.resolve().name}\n",
        f"Starting model: `{start}`. Made by {', '.join(f'`verigrad {one.verb}`' for one in records)}, in "
        "that order. This page was written by `verigrad card` from what the runs recorded.\n",
    ]
    for one in records:
        title = f"## {one.folder.name}: verigrad {one.verb}\n" if len(records) > 1 else ""
        blocks += [title, *part(one)]
    blocks += ["## Side effects\n", *effect_lines(found)]
    blocks += ["## Failures found\n", bullets(failures(records, found))]
    blocks += ["## Residual risks\n", bullets(risks(records, found))]
    return "\n".join(block.rstrip("\n") + "\n" for block in blocks if block)


def parts_of(folder: Path) -> list[Path]:
    """The folder itself, or those of its stages in order."""
    if (folder / "config.toml").is_file():
        return [folder]
    if not folder.is_dir():
        raise ConfigError(f"no folder {folder} (looked from {Path.cwd()}); name a run's folder")
    stages = [path for path in folder.iterdir() if (path / "config.toml").is_file()]
    found = [(STAGE.match(path.name), path) for path in stages]
    numbered = sorted((int(match[1]), path) for match, path in found if match)
    if not numbered:
        raise ConfigError(f"{folder} holds no run (no config.toml); name a run's folder")
    return [path for _, path in numbered]


# Parts ---------------------------------------------------------------------------------------------------


def header(records: Sequence[Record], start: str) -> str:
    """The YAML that the hub reads."""
    from huggingface_hub import ModelCardData

    paths = dict.fromkeys(str(one.get("data", "path")) for one in records)
    datasets = [path for path in paths if path.count("/") == 1 and ":" not in path and not Path(path).suffix]
    data = ModelCardData(
        base_model=start if start.count("/") == 1 and ":" not in start else None,
        datasets=datasets or None,
        library_name="transformers",
        tags=["verigrad", *dict.fromkeys(one.verb for one in records)],
    )
    return f"---\n{data.to_yaml()}\n---\n"


def part(one: Record) -> Iterator[str]:
    """Data, reward, settings and results of one command."""
    yield "### Data\n"
    yield table(("what", "value"), data_rows(one))
    if rows := list(reward_rows(one)):
        yield "### What was rewarded\n"
        yield table(("what", "value"), rows)
    if principles := constitution(one):
        yield "### Constitution\n"
        yield principles
    yield "### Settings\n"
    yield table(("setting", "value"), setting_rows(one))
    yield "### Results\n"
    yield from results(one)


def data_rows(one: Record) -> Iterator[tuple[str, str]]:
    """Where the data came from, and what tells it from other data."""
    yield "path", f"`{one.get('data', 'path')}`"
    for name, mixed in one.recipe.get("data", {}).get("mix", {}).items():
        yield f"mixed in: {name}", f"`{mixed.get('path')}`, weight {mixed.get('weight', 1.0):g}"
    names = {"data": "fingerprint of the rows", "prompts": "of the prompt template", "model": "of the model"}
    for key, says in names.items():
        if key in one.environment:
            yield says, f"`{one.environment[key]}`"
    yield "seed", str(one.environment.get("seed", one.get("train", "seed", "unknown")))


def reward_rows(one: Record) -> Iterator[tuple[str, str]]:
    """Who judged."""
    if one.verb in ("train", "sample"):
        yield "verifier", f"`{one.get('verifier', 'name')}`"
        if options := one.get("verifier", "options", {}):
            yield "its options", f"`{json.dumps(options)}`"
        if "verifier" in one.environment:
            yield "hash of its source", f"`{one.environment['verifier']}`"
        judge = one.get("eval", "verifier") or "the same"
        yield "judge of held-out answers", f"`{judge}`" if judge != "the same" else judge
        second = one.get("monitor", "verifier")
        yield "second reward, not trained on", f"`{second}`" if second else "none"
        if one.environment.get("control"):
            yield "control", "this run was rewarded at random, on purpose"
    if one.verb == "prefer":
        yield "loss", f"`{one.get('prefer', 'loss')}`, beta {one.get('prefer', 'beta', 'of the loss')}"
    if one.verb == "label":
        yield "judge", f"`{one.get('judge', 'model')}` {one.get('judge', 'url')}".strip()
        yield "task", str(one.get("label", "task"))


def constitution(one: Record) -> str:
    """The principles that the judge went by, as they were."""
    path = Path(str(one.get("label", "constitution") or "-"))
    if one.verb != "label" or not one.get("label", "constitution"):
        return ""
    if not path.is_file():
        return f"`{path}`, which is not there any more\n"
    return "\n".join(f"> {line}" for line in path.read_text().strip().splitlines()) + "\n"


def setting_rows(one: Record) -> Iterator[tuple[str, str]]:
    """Settings that are not the defaults, and those that name what was done."""
    from verigrad.engine.settings import Config

    told = {("algorithm", "name"), ("optim", "lr"), ("train", "num_steps"), ("policy", "model")}
    elsewhere = {("data", "path"), ("data", "mix"), ("run", "folder"), ("verifier", "options")}
    for section, values in one.recipe.items():
        field = Config.model_fields.get(section)
        fields = getattr(getattr(field, "annotation", None), "model_fields", {})
        for key, value in values.items():
            default = fields[key].default if key in fields else None
            default = list(default) if isinstance(default, tuple) else default
            chosen = value != default or (section, key) in told
            if chosen and (section, key) not in elsewhere:
                yield f"`{section}.{key}`", f"`{json.dumps(value, default=str)}`"


def results(one: Record) -> Iterator[str]:
    """Every evaluation set's first and last scores, with 95% intervals."""
    if not one.evals:
        yield "Nothing was held out, so nothing is known of how it does on what it was not trained on.\n"
        return
    rows = []
    for name, (first, last) in first_and_last(one.evals).items():
        for score in ("avg", "accuracy", "loss"):
            if score in last:
                rows.append((name, score, scored(first, score), scored(last, score), counted(last)))
    yield table(("held-out set", "score", "before", "after", "measured on"), rows)


def first_and_last(evals: Sequence[Json]) -> dict[str, tuple[Json, Json]]:
    """Each evaluation set's first and last row, by its name; the rows of several sets stand mixed."""
    found: dict[str, tuple[Json, Json]] = {}
    for row in evals:
        name = str(row.get("data"))
        found[name] = (found[name][0] if name in found else row, row)
    return found


def scored(row: Json, score: str) -> str:
    """`0.412 [0.351, 0.473] at step 40`."""
    value, low, high = (row.get(f"{score}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return "undefined"
    bounds = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
    return f"{value:.3f}{bounds} at step {row.get('step')}"


def counted(row: Json) -> str:
    """How many problems or examples a row is about."""
    for key in ("num_problems", "num_pairs", "num_examples", "num_rows"):
        if key in row:
            return f"{row[key]} {key.removeprefix('num_')}"
    return "unknown"


# What went wrong, and what may --------------------------------------------------------------------------


def effect_lines(found: Json) -> Iterator[str]:
    """The side effects that were measured."""
    if not found:
        yield "Not measured. `verigrad eval BEFORE AFTER --suite general -o FOLDER` measures them.\n"
        return
    rows = []
    for one in found.get("side_effects", []):
        paired = one["paired"]
        change = f"{paired['gain']:+.3f} [{paired['low']:+.3f}, {paired['high']:+.3f}]"
        what = (one["name"], one["says"], f"{one['before'][0]:.3f}", f"{one['after'][0]:.3f}", change)
        rows.append((*what, one["reading"]))
    yield table(("measure", "what it is", "before", "after", "difference, 95%", "reading"), rows)
    for name, rate in found.get("wins", {}).items():
        yield (
            f"Win rate, {name}: {rate['rate']:.1%} [{rate['low']:.1%}, {rate['high']:.1%}]; at equal length "
            f"{rate['controlled']:.1%} [{rate['controlled_low']:.1%}, {rate['controlled_high']:.1%}].\n"
        )


def failures(records: Sequence[Record], found: Json) -> Iterator[str]:
    """What the runs and their checks recorded as wrong."""
    for one in records:
        where = f"{one.folder.name}: "
        for probe in one.audit.get("results", []):
            if probe.get("status") in ("FAILS", "warns"):
                worst = f", e.g. {str(probe['worst'])[:160]}" if probe.get("worst") else ""
                yield (
                    f"{where}the verifier failed the audit's probe {probe['name']!r} in {probe['num_bad']} "
                    f"of {probe['num']} cases{worst}"
                )
        if one.verb == "reward":
            yield from (f"{where}{line}" for line in of_reward_model(one.folder))
        undecided = [row["undecided_frac"] for row in one.metrics if row.get("undecided_frac")]
        if undecided:
            yield (
                f"{where}checks failed in {len(undecided)} of {len(one.metrics)} steps, at most "
                f"{max(undecided):.1%} of a step's attempts; they were left out"
            )
        skipped = sum(row.get("skipped_updates") or 0 for row in one.metrics)
        if skipped:
            yield f"{where}{skipped:.0f} optimizer steps were skipped for a non-finite loss or gradient"
        for path in sorted((one.folder / "tripped").glob("step_*.parquet")):
            step = path.stem.removeprefix("step_").lstrip("0")
            yield f"{where}a sign of reward hacking tripped at step {step}; its rollouts are in {path.name}"
        for name, (_, last) in first_and_last(one.evals).items():
            if (cut := last.get("truncated_frac") or 0) > 0.05:
                yield f"{where}{cut:.1%} of held-out answers were cut off by the token limit, on {name}"
    for effect in found.get("side_effects", []):
        if effect["reading"] == "WORSE":
            yield f"side effect: {effect['name']} got worse by {abs(effect['paired']['gain']):.3f}"


def of_reward_model(folder: Path) -> Iterator[str]:
    """What the audit of a reward model's newest checkpoint found."""
    for _, newest in itertools.islice(checkpoint.newest_first(folder / "checkpoints"), 1):
        audit = _json(newest / "audit.json")
        if audit.get("refused"):
            yield f"the reward model was refused by its audit: {audit.get('reason', 'no reason given')}"
        yield from audit.get("findings", [])


def risks(records: Sequence[Record], found: Json) -> Iterator[str]:
    """What follows from how it was made, and what was not looked at."""
    trained = [one for one in records if one.verb == "train"]
    for one in trained:
        name = str(one.get("verifier", "name"))
        if name in ("reward_model", "process_reward", "rubric", "judge_score"):
            yield (
                f"{one.folder.name}: the reward is learned or judged by a model ({name}); what it likes is "
                "what was trained, which may not be what was meant"
            )
        if not one.get("monitor", "verifier"):
            yield f"{one.folder.name}: no second reward watched the first, so a gamed reward may not show"
        if one.get("verifier", "audit") == "off":
            yield f"{one.folder.name}: the verifier was not audited before training"
        if one.get("sandbox", "backend") == "local_process":
            yield f"{one.folder.name}: programs ran without a sandbox"
    for one in records:
        if one.verb in ("train", "sft", "prefer") and not one.evals:
            yield f"{one.folder.name}: nothing was held out"
        for name, (_, last) in first_and_last(one.evals).items():
            if (num := last.get("num_problems") or 0) and num < 100:
                yield f"{one.folder.name}: the results on {name} rest on {num} problems; see the intervals"
    if not found:
        yield "side effects (refusals, sycophancy, other abilities) were not measured"
    yield "whether held-out problems occur in the starting model's own training data is unknown"
    yield "one run is one seed; other seeds give other models"


# Writing -------------------------------------------------------------------------------------------------


def table(headings: Sequence[str], rows: Iterator[tuple[str, ...]] | Sequence[tuple[str, ...]]) -> str:
    """A Markdown table; what rows hold cannot break it."""
    lines = [f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
    lines += [f"| {' | '.join(cell_of(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def cell_of(value: object) -> str:
    """Text that stays within its cell, and is no HTML."""
    text = " ".join(str(value).split()).replace("|", "\\|")
    is_code = len(text) > 2 and text[0] == text[-1] == "`" and "`" not in text[1:-1]
    return text if is_code else text.replace("<", "&lt;")


def bullets(lines: Iterator[str]) -> str:
    """A list, or that there is nothing to list."""
    found = [f"- {cell_of(line)}" for line in lines]
    return "\n".join(found or ["None recorded."]) + "\n"


def _effects(folder: Path | None) -> Json:
    if folder is None:
        return {}
    path = folder / "side_effects.json"
    if not path.is_file():
        raise ConfigError(
            f"--effects {folder}: no side_effects.json there; write it with "
            "`verigrad eval BEFORE AFTER --suite SUITE -o FOLDER`"
        )
    return _json(path)


def _json(path: Path) -> Json:
    try:
        found: Json = json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON: {error}; the card is made of what the run wrote") from None
    return found


def _jsonl(path: Path) -> list[Json]:
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:  # the last line of a run that was killed
            continue
    return rows
