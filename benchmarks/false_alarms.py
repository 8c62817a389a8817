"""Recorded runs -> what the monitor would have said of them: python false_alarms.py RUN... [SETTING...]

    python benchmarks/false_alarms.py runs/seed0 runs/seed1 monitor.patience=3 monitor.verifier=exact_match

Every step's rollouts are read again and given to the monitor, with the limits of [monitor] as they are by
default or as given. Nothing in the run folders is changed. Of a run that is known to be honest each trip is a
false alarm; the range of each sign over all steps says where a limit would have room.
"""

import argparse
import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from verigrad.engine import rollout_file
from verigrad.engine.config import load
from verigrad.engine.monitor import LIMITS, Look, Monitor
from verigrad.engine.schema import Rollout, VerifiedGroup
from verigrad.engine.scoring import Judges
from verigrad.verifiers import registry


class Told:
    """The run as the monitor knows it; nothing is written."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.keep_before = folder, None

    def note(self, text: str) -> None:
        """Printed."""
        print(f"  {text}")

    def timed(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Not timed."""
        return contextlib.nullcontext()


class Onlooker(Monitor):
    """Counts what would have tripped, and goes on."""

    def _trip(self, look: Look, values: Mapping[str, float], over: Sequence[str]) -> None:
        self.trips: dict[str, int] = getattr(self, "trips", {})
        for sign in over:
            self.trips.setdefault(sign, look.step)


def main() -> None:
    """Print, for each run and for all, what tripped and the range of each sign."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "words", nargs="+", metavar="RUN|SETTING", help="run folders, and settings of [monitor]"
    )
    args = parser.parse_args()
    settings = [word for word in args.words if "=" in word]
    ranges: dict[str, list[float]] = {}
    num_steps = num_tripped = 0
    runs = [Path(word) for word in args.words if "=" not in word]
    for folder in runs:
        steps, trips = watch(folder, settings, ranges)
        num_steps, num_tripped = num_steps + steps, num_tripped + bool(trips)
        told = ", ".join(f"{sign} at step {step}" for sign, step in trips.items()) or "nothing"
        print(f"{folder}: {steps} steps, {told} tripped")
    print(f"{num_tripped} of {len(runs)} runs tripped, {num_steps} steps")
    print("\n| sign | smallest | median | largest |")
    print("|---|---|---|---|")
    for sign, values in ranges.items():
        values.sort()
        cells = (values[0], values[len(values) // 2], values[-1])
        print(f"| `{sign}` | {' | '.join(f'{value:.3f}' for value in cells)} |")


def watch(
    folder: Path, settings: Sequence[str], ranges: dict[str, list[float]]
) -> tuple[int, Mapping[str, int]]:
    """How many steps a run has, and sign -> the step at which it would have tripped."""
    words = [f"run.folder={json.dumps(str(folder))}", *settings]
    cfg = load(str(folder / "config.toml"), words)
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    with Judges(cfg) as judges:
        runs_code = registry.load(cfg.verifier.name, cfg.verifier.options).policy.runs == "sandbox"
        monitor = Onlooker(cfg, Told(folder), runs_code=runs_code, second=judges.second())
        for row in metrics:
            groups = list(groups_of(folder / "rollouts" / f"step_{row['step']:06d}.parquet"))
            monitor.look(row["step"], groups)
            known = {name: math.nan if value is None else value for name, value in row.items()}
            for name, value in monitor.observe(row["step"], groups, known).items():
                sign = name.removeprefix("monitor/")
                if sign in LIMITS and math.isfinite(value):
                    ranges.setdefault(sign, []).append(value)
    return len(metrics), getattr(monitor, "trips", {})


def groups_of(path: Path) -> Iterator[VerifiedGroup]:
    """A step's groups as they were judged; greedy baselines, which a run samples besides, count as groups."""
    tokens = pq.read_table(path, columns=["token_ids", "loss_mask", "logprobs", "policy_versions"])
    found: dict[int, list[tuple[rollout_file.Recorded, Mapping[str, Any]]]] = {}
    for recorded, row in zip(rollout_file.read_attempts(path), tokens.to_pylist(), strict=True):
        found.setdefault(recorded.group, []).append((recorded, row))
    for members in found.values():
        rollouts = [
            Rollout(
                text=recorded.attempt.text,
                finish_reason="length" if recorded.attempt.truncated else "stop",
                seed=0,
                episode=recorded.episode,
                **row,
            )
            for recorded, row in members
        ]
        verdicts = [recorded.verdict for recorded, _ in members]
        yield VerifiedGroup(members[0][0].problem, rollouts, verdicts)


if __name__ == "__main__":
    main()
