"""`verigrad replay RUN`: words -> a run's recipe and its files of rollouts, to be judged again. No torch."""

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from verigrad.engine import stage_recipe
from verigrad.engine.config import Config, ConfigError, load, read_tree
from verigrad.engine.config_verbs import verb_of
from verigrad.engine.verify import parse_option

JUDGING = ("train", "sample")  # commands whose runs hold rollouts and their verdicts
TRAIN = "train"  # what --set calls the rollouts that were trained on
MAX_STEPS_SHOWN = 12
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


def run(args: argparse.Namespace) -> int:
    """Judge again and report; 0 if all is identical, 1 if something differs."""
    folder = Path(args.run_folder).expanduser()
    cfg = _recipe(folder, args)
    try:
        options = dict(parse_option(text) for text in args.option)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    sources = _sources(folder, args.step, args.data)
    from verigrad.engine import replay_run  # what is cheap to get wrong was said before torch is imported

    files = [(one.path, None if one.data == TRAIN else one.data) for one in sources]
    return replay_run.run(
        cfg, files, verifier=args.verifier, options=options, as_json=args.json, limit=args.limit
    )


def _recipe(folder: Path, args: argparse.Namespace) -> Config:
    """The run's own recipe, with what the words replace; verdicts are never taken from memory."""
    record = folder / "config.toml"
    stage_recipe.refuse_folder(folder)
    if not folder.is_dir():
        raise ConfigError(f"no folder {folder} (looked from {Path.cwd()}); name a run folder")
    if not record.is_file():
        raise ConfigError(f"{folder} is no run folder (it has no config.toml); name one, such as runs/NAME")
    if (verb := verb_of(read_tree(record))) not in JUDGING:
        raise ConfigError(
            f"{folder} is a run of `verigrad {verb}`, which judges no rollouts: there is nothing to replay; "
            f"name one of `verigrad {'` or `verigrad '.join(JUDGING)}`"
        )
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
        asked = [f"--step {step}"] * (wanted is not None) + [f"--set {data}"] * (data is not None)
        has = (f"{name} of {_steps([one.step for one in there if one.data == name])}"
               for name in sorted({one.data for one in there}))  # fmt: skip
        raise ConfigError(f"{folder} has no rollouts for {' '.join(asked)}; it has {'; '.join(has)}")
    return chosen


def _steps(steps: Sequence[int]) -> str:
    """The steps in words: all of them where they are few, else the first, the last and how many."""
    if len(steps) == 1:
        return f"step {steps[0]}"
    if list(steps) == list(range(steps[0], steps[-1] + 1)):
        return f"steps {steps[0]} to {steps[-1]}"
    if len(steps) <= MAX_STEPS_SHOWN:
        return f"steps {', '.join(map(str, steps))}"
    return f"{len(steps)} steps from {steps[0]} to {steps[-1]}"
