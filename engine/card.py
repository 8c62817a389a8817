"""`verigrad card RUN`: a run's folder -> a model card: what it was made from, how it did, what failed.

Everything in it is read from files the run wrote; what they do not say is said to be unknown.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from verigrad.engine.card_findings import effect_lines, failures, risks
from verigrad.engine.card_parts import part
from verigrad.engine.card_record import Json, Record, parts_of, read_json
from verigrad.engine.card_text import bullets
from verigrad.engine.config import ConfigError

EXAMPLE = """\
examples:
  verigrad card runs/quickstart
  verigrad card runs/quickstart --effects compared -o MODEL_CARD.md

A run of stages gets one card with a part for each stage.
"""


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
    path = Path(args.output).expanduser() if args.output else folder / "model_card.md"
    write(path, text)
    print(f"written to {path}")
    return 0


def write(path: Path, text: str) -> None:
    """Write the file; ConfigError in one line where it cannot be."""
    try:
        if path.is_dir():
            raise ConfigError(f"-o {path} is a folder; name a file, such as {path / 'model_card.md'}")
        if not path.parent.is_dir():
            raise ConfigError(f"-o {path}: there is no folder {path.parent}; make it, or name another file")
        path.write_text(text)
    except OSError as error:
        raise ConfigError(f"{path} could not be written ({error.strerror}); name another with -o") from error


def card(folder: Path, *, effects: Path | None = None) -> str:
    """The whole card; ConfigError in one line where there is no run."""
    records = [Record.read(each) for each in parts_of(folder)]
    found = _effects(effects)
    policies = [one for one in records if one.verb in ("train", "sft", "prefer")]
    start = next((str(one.get("policy", "model")) for one in policies), "unknown")
    commands = ", ".join(f"`verigrad {one.verb}`" for one in records)
    order = ", in that order" if len(records) > 1 else ""
    blocks = [
        header(records, start),
        f"# {folder.resolve().name}\n",
        f"Starting model: `{start}`. Made by {commands}{order}. This page was written by `verigrad card` "
        "from what was recorded.\n",
    ]
    for one in records:
        title = f"## {one.folder.name}: verigrad {one.verb}\n" if len(records) > 1 else ""
        blocks += [title, *part(one, level=3 if title else 2)]
    blocks += ["## Side effects\n", *effect_lines(found)]
    blocks += ["## Failures found\n", bullets(failures(records, found))]
    blocks += ["## Residual risks\n", bullets(risks(records, found))]
    return "\n".join(block.rstrip("\n") + "\n" for block in blocks if block)


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


def _effects(folder: Path | None) -> Json:
    if folder is None:
        return {}
    path = folder / "side_effects.json"
    if not path.is_file():
        raise ConfigError(
            f"--effects {folder}: no side_effects.json there; write it with "
            "`verigrad eval BEFORE AFTER --suite SUITE -o FOLDER`"
        )
    return read_json(path)
