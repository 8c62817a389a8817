"""Every benchmark of speed, one after the other -> dated rows, and each bar beside what was measured last.

    python benchmarks/run.py                  all that runs here: over an hour on two quiet cores
    python benchmarks/run.py races learning   some of it
    python benchmarks/run.py --table          run nothing: the bars, by the newest rows in results/

Each part is a command of its own and takes turns with its rivals inside; a machine that does other work
meanwhile spoils the ratios, and the load is in every row. Exit status 1 where a part failed or a bar is
missed. What has no row is "unmeasured", never held.
"""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
BEFORE = "2026-11-21"  # day of the quickstart's row that later ones are held against
Row = Mapping[str, Any]

PARTS: Mapping[str, Sequence[Sequence[str]]] = {
    "kernels": [["kernels.py"]],
    "sync": [["sync.py"]],
    "growth": [["growth.py", "--out", "results/growth.jsonl"]],
    "races": [["against_trl.py", "fixed_3.6m", "fixed_0.6m", "ragged", "reasoning"]],
    "preferences": [["against_trl_dpo.py"]],
    "learning": [["against_trl.py", "learning"]],
    "verifiers": [["math_verifier.py"], ["sandbox.py"]],
}
"""Commands in this folder, by the name of the part."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One promise: a number of the newest row that has it, and the least or most it may be."""

    what: str
    file: str
    value: Callable[[Row], float | None]  # None: this row does not tell
    least: float | None = None
    most: float | None = None

    def held(self, value: float) -> bool:
        """Whether the promise is kept; by a number that is none it is not."""
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


def of_race(name: str, *path: str) -> Callable[[Row], float | None]:
    """A median in the rows of one race."""

    def value(row: Row) -> float | None:
        if row.get("race") != name or any(part not in _at(row, path[:i]) for i, part in enumerate(path)):
            return None
        return float(_at(row, path)["median"])

    return value


def of_kernels(hidden: int, vocabulary: int) -> Callable[[Row], float | None]:
    """Milliseconds of the policy loss with entropy on a GPU; nothing else counts."""

    def value(row: Row) -> float | None:
        shape = row["shape"]
        if row["work"] != "policy" or (shape["H"], shape["V"]) != (hidden, vocabulary):
            return None
        ours = row["sides"].get("ours_triton")
        return None if ours is None or "CPU" in row["device"] else float(ours["ms"]["median"])

    return value


def seconds_to(level: float, side: str, row: Row) -> float:
    """Training seconds until the first held-out accuracy of `level`; infinite where it was not reached."""
    reached = (point["train_s"] for point in row["curves"][side] if point["avg"] >= level)
    return next(reached, math.inf)


def faster_than_trl(row: Row) -> float | None:
    """TRL's seconds to 0.9 over ours; where TRL did not get there, those after which it was stopped."""
    theirs = min(seconds_to(0.9, "TRL", row), row["curves"]["TRL"][-1]["train_s"])
    return float(theirs / seconds_to(0.9, "verigrad", row))


def faster_than_before(row: Row) -> float | None:
    """Our seconds to 0.9 over those of the row that was recorded first."""
    if row["machine"]["time"].startswith(BEFORE):
        return None
    first = next(one for one in rows_of("learning") if one["machine"]["time"].startswith(BEFORE))
    return seconds_to(0.9, "verigrad", row) / seconds_to(0.9, "verigrad", first)


BARS = (
    Bar("reasoning: s/step, TRL as shipped over ours", "against_trl",
        of_race("reasoning", "ratios", "trl_transformers", "per_step"), least=4.0),
    Bar("reasoning: s/token, TRL as shipped over ours", "against_trl",
        of_race("reasoning", "ratios", "trl_transformers", "per_token"), least=4.0),
    Bar("reasoning: s/step, TRL with vLLM over ours", "against_trl",
        of_race("reasoning", "ratios", "trl_vllm", "per_step"), least=2.0),
    Bar("reasoning: our memory above imports over TRL's", "against_trl",
        of_race("reasoning", "memory", "trl_transformers"), most=0.5),
    Bar("fixed lengths, 3.57 M: s/step, TRL as shipped over ours", "against_trl",
        of_race("fixed_3.6m", "ratios", "trl_transformers", "per_step"), least=1.2),
    Bar("fixed lengths, 3.57 M: s/step, TRL with vLLM over ours", "against_trl",
        of_race("fixed_3.6m", "ratios", "trl_vllm", "per_step"), least=1.2),
    Bar("quickstart: s to 0.9 held out, TRL over ours", "learning", faster_than_trl, least=4.0),
    Bar("quickstart: s to 0.9 held out, ours over ours before", "learning", faster_than_before, most=0.5),
    Bar("DPO, fixed lengths: s/step, TRL precomputed over ours", "against_trl_dpo",
        of_race("fixed", "ratios", "trl_precomputed", "step"), least=1.0),
    Bar("DPO, fixed lengths: TRL's memory over ours", "against_trl_dpo",
        of_race("fixed", "ratios", "trl_precomputed", "memory"), least=1.0),
    Bar("DPO, ragged: s/step, TRL precomputed over ours", "against_trl_dpo",
        of_race("ragged", "ratios", "trl_precomputed", "step"), least=1.0),
    Bar("loss layer on an H200, 8192 x 4096 x 131072: ms", "kernels", of_kernels(4096, 131072), most=45.0),
    Bar("loss layer on an H200, 16384 x 3584 x 152064: ms", "kernels", of_kernels(3584, 152064), most=90.0),
    Bar("math_answer: answers per processor second over math-verify's", "math_verifier",
        lambda row: row["speed"]["ratio"]["median"], least=3.0),
    Bar("container: p50 of a program over a bare python3's", "sandbox", lambda row: row["ratio"], most=1.0),
)  # fmt: skip


def main() -> None:
    """Run what is asked for, then show the bars."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)} (all)")
    parser.add_argument("--table", action="store_true", help="run nothing, show the bars")
    args = parser.parse_args()
    if unknown := sorted(set(args.parts) - set(PARTS)):
        parser.error(f"{unknown[0]!r} is none of {', '.join(PARTS)}")
    failed = []
    for part in () if args.table else args.parts or PARTS:
        for script, *more in PARTS[part]:
            print(f"--- {part}: python benchmarks/{script} {' '.join(more)}", flush=True)
            if subprocess.run([sys.executable, str(HERE / script), *more], cwd=HERE, check=False).returncode:
                failed.append(part)
    missed = show(BARS)
    if failed or missed:
        ended = f"ended with an error or a bar missed: {', '.join(dict.fromkeys(failed))}; " if failed else ""
        raise SystemExit(f"{ended}{missed} of {len(BARS)} bars missed")


def show(bars: Sequence[Bar]) -> int:
    """Print the bars with what was measured; returns how many were missed."""
    table, missed = Table("promise", "bar", "measured", "when", "load", ""), 0
    for bar in bars:
        wanted = f">= {bar.least:g}" if bar.most is None else f"<= {bar.most:g}"
        found = newest(bar)
        if found is None:
            table.add_row(bar.what, wanted, "unmeasured", "", "", "")
            continue
        value, machine = found
        held = bar.held(value)
        missed += not held
        when, load = machine["time"][:10], f"{machine['load_1min']:g}"
        table.add_row(bar.what, wanted, f"{value:.2f}", when, load, "held" if held else "MISSED")
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    return missed


def newest(bar: Bar) -> tuple[float, Row] | None:
    """The number of the newest row that tells it, and the machine it was measured on."""
    for row in reversed(rows_of(bar.file)):
        if (value := bar.value(row)) is not None:
            return value, row["machine"]
    return None


def rows_of(name: str) -> list[Row]:
    """The rows of a file of results, oldest first; none where nothing was measured yet."""
    path = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _at(row: Row, path: Sequence[str]) -> Any:
    for part in path:
        row = row[part]
    return row


if __name__ == "__main__":
    main()
