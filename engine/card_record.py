"""A run's folder -> what one command left there, as the model card reads it; of stages, each one's."""

import itertools
import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verigrad.engine import checkpoint
from verigrad.engine.config import ConfigError
from verigrad.engine.config_verbs import verb_of

Json = Mapping[str, Any]
STAGE = re.compile(r"(\d+)_")
MAX_READ = 20  # rollout files that are read for the reasons of undecided checks


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
        try:
            recipe = tomllib.loads((folder / "config.toml").read_text())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{folder / 'config.toml'}: not a TOML file: {error}") from None
        return cls(
            folder,
            recipe,
            read_json(folder / "environment.json"),
            read_jsonl(folder / "metrics.jsonl"),
            read_jsonl(folder / "eval.jsonl"),
            read_json(folder / "audit.json"),
        )

    def get(self, section: str, key: str, default: Any = "") -> Any:
        """A setting of the resolved recipe."""
        return self.recipe.get(section, {}).get(key, default)

    @property
    def verb(self) -> str:
        """The command it was."""
        return verb_of(self.recipe)

    def total(self, name: str) -> int:
        """The sum of a column of metrics.jsonl."""
        return round(sum(row.get(name) or 0 for row in self.metrics))

    def audit_of_reward_model(self) -> Json:
        """audit.json of the newest checkpoint; empty where there is none."""
        for _, newest in itertools.islice(checkpoint.newest_first(self.folder / "checkpoints"), 1):
            return read_json(newest / "audit.json")
        return {}

    def reasons(self) -> Counter[str]:
        """Why checks could not decide, and how often, of at most MAX_READ steps."""
        if self.verb == "label":
            last = {
                (row["row"], row["question"]): row for row in read_jsonl(self.folder / "judgements.jsonl")
            }
            return Counter(row["error"] for row in last.values() if row.get("error"))
        steps = [int(row["step"]) for row in self.metrics if row.get("undecided_frac") and "step" in row]
        found: Counter[str] = Counter()
        for step in steps[:MAX_READ]:
            found.update(undecided_of(self.folder / "rollouts" / f"{checkpoint.name_of(step)}.parquet"))
        return found


def parts_of(folder: Path) -> list[Path]:
    """The folder itself, or those of its stages in order."""
    if (folder / "config.toml").is_file():
        return [folder]
    if not folder.is_dir():
        what = f"{folder} is a file" if folder.exists() else f"no folder {folder} (looked from {Path.cwd()})"
        beside = folder.with_suffix("")
        hint = (
            f"; did you mean {beside}?" if beside != folder and beside.is_dir() else "; name a run's folder"
        )
        raise ConfigError(what + hint)
    stages = [path for path in folder.iterdir() if (path / "config.toml").is_file()]
    found = [(STAGE.match(path.name), path) for path in stages]
    numbered = sorted((int(match[1]), path) for match, path in found if match)
    if not numbered:
        raise ConfigError(f"{folder} holds no run (no config.toml); name a run's folder")
    return [path for _, path in numbered]


def undecided_of(path: Path) -> Iterator[str]:
    """The reasons of the undecided verdicts in a file of rollouts; none where there is no such file."""
    import pyarrow.parquet as pq

    if not path.is_file():
        return
    columns = pq.read_table(path, columns=["outcome", "reason"])
    for outcome, reason in zip(columns["outcome"].to_pylist(), columns["reason"].to_pylist(), strict=True):
        if outcome == "undecided":
            yield reason or "no reason given"


def read_json(path: Path) -> Json:
    """A JSON object, empty where there is no file; ConfigError for what is no JSON."""
    try:
        found: Json = json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON: {error}; the card is made of what the run wrote") from None
    return found


def read_jsonl(path: Path) -> list[Json]:
    """Its rows, none where there is no file; a last line that a kill cut off is passed over."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows
