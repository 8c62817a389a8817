"""math_answer and math-verify on the same answers: speed on one core, graded cases, hostile input.

    python benchmarks/math_verifier.py [--problems 96] [--samples 8] [--rounds 3] [--quick]

Speed: each side in fresh processes on one core, warm, in turn; the mix of math_mix.py. Accuracy and hostile
input: each side in the engine's own killable workers. Appends a row to results/math_verifier.jsonl.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import math_mix
import measured

from verigrad.verifiers.base import Attempt, Problem, Verdict
from verigrad.verifiers.isolation import VerifierPool

HERE = Path(__file__).resolve().parent
CASES = HERE.parent / "tests" / "verifiers" / "math_cases.jsonl"
OUT = HERE / "results" / "math_verifier.jsonl"
SIDES = ("ours", "math_verify")
BAR = 3.0  # times as many answers per second as math-verify
NUM_WARM_PROBLEMS = 8
HOSTILE = [
    "9^{9^{9}}", "(10^9)!", r"\binom{10^9}{5\cdot10^8}", r"\sum_{k=1}^{10^9} \frac{1}{k}",
    r"\prod_{k=1}^{10^8}k", "(" * 48 + "1" + ")" * 48, r"\sqrt{" * 300 + "2" + "}" * 300,
    r"\int_0^1 x^{x^{x^{x}}} dx", "x" * 3000, "{" * 100_000, "9**9**9", "1" * 4000,
]  # fmt: skip


def main() -> None:
    """Measure, print a table's worth of JSON, and append it to the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--problems", type=int, default=96, help="to be answered (96)")
    parser.add_argument("--samples", type=int, default=8, help="responses to each, as in a group (8)")
    parser.add_argument("--rounds", type=int, default=3, help="fresh processes of each side, in turn (3)")
    parser.add_argument("--seed", type=int, default=0, help="of the mix (0)")
    parser.add_argument("--quick", action="store_true", help="speed alone, nothing appended")
    args = parser.parse_args()
    if min(args.problems, args.rounds, args.samples) < 1:
        raise SystemExit("--problems, --samples and --rounds: at least 1")
    row: dict[str, Any] = {
        "what": "math_verifier",
        "machine": measured.machine(),
        "versions": {name: version(name) for name in ("math-verify", "sympy", "latex2sympy2_extended")},
        "speed": speed(args.seed, args.problems, args.samples, args.rounds),
    }
    if not args.quick:
        row["accuracy"] = {side: accuracy(side) for side in SIDES}
        row["hostile"] = {side: hostile(side) for side in SIDES}
        measured.append_row(OUT, row)
    print(json.dumps(row, indent=1))


def speed(seed: int, num_problems: int, num_samples: int, num_rounds: int) -> dict[str, Any]:
    """Answers per second and latencies of both sides, and their ratio in each round."""
    warm = [{**row, "warm_up": True} for row in math_mix.mix(seed + 1, NUM_WARM_PROBLEMS, num_samples=8)]
    rows = [{**row, "warm_up": False} for row in math_mix.mix(seed, num_problems, num_samples=num_samples)]
    rounds: dict[str, list[list[dict[str, Any]]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory(prefix="verigrad-math-") as name:
        folder = Path(name)
        source = folder / "mix.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in [*warm, *rows]))
        for _ in range(num_rounds):
            for side in SIDES:
                out = folder / f"{side}.json"
                command = [sys.executable, str(HERE / "math_side.py"), side, str(source), str(out)]
                measured.run(command, env=measured.environment(1), folder=folder, limit_s=1800)
                rounds[side].append(json.loads(out.read_text()))
    sides = {side: summary(rows, rounds[side]) for side in SIDES}
    ratios = [
        total(theirs, "cpu_s") / total(mine, "cpu_s")
        for mine, theirs in zip(rounds["ours"], rounds["math_verify"], strict=True)
    ]
    ratio = statistics.median(ratios)
    return {
        "num_answers": len(rows),
        "num_samples": num_samples,
        "num_rounds": num_rounds,
        **sides,
        "ratio": {"median": ratio, "smallest": min(ratios), "largest": max(ratios)},
        "bar": BAR,
        "bar_held": ratio >= BAR,
    }


def summary(
    rows: Sequence[Mapping[str, Any]], rounds: Sequence[Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    """One side: answers per second of processor and of wall time, latencies, accuracy on the mix, by kind.

    Processor time is what a busy machine does not change; an answer's latency is its best round.
    """
    best = [min(one["cpu_s"] for one in answers) for answers in zip(*rounds, strict=True)]
    right = [one["right"] for one in rounds[0]]
    kinds: dict[str, list[float]] = {}
    for row, seconds in zip(rows, best, strict=True):
        kinds.setdefault(str(row["kind"]), []).append(seconds)
    return {
        "answers_per_cpu_s": len(rows) / statistics.median(total(one, "cpu_s") for one in rounds),
        "answers_per_wall_s": len(rows) / statistics.median(total(one, "wall_s") for one in rounds),
        "p50_ms": 1000 * statistics.median(best),
        "p99_ms": 1000 * percentile(best, 0.99),
        "max_ms": 1000 * max(best),
        "judged_as_made": sum(said == row["right"] for said, row in zip(right, rows, strict=True))
        / len(rows),
        "mean_ms_by_kind": {kind: 1000 * statistics.fmean(values) for kind, values in sorted(kinds.items())},
    }


def accuracy(side: str) -> dict[str, Any]:
    """Share of the graded cases judged as they should be, with its 95% interval; what is undecided is not."""
    cases = [json.loads(line) for line in CASES.read_text().splitlines()]
    options = [case.get("options", {}).get("extract", "boxed") for case in cases]
    verdicts: list[Verdict | None] = [None] * len(cases)
    for extract in sorted(set(options)):
        chosen = [number for number, option in enumerate(options) if option == extract]
        problems = [(Problem("p", "?", cases[n]["answer"]), Attempt(cases[n]["response"])) for n in chosen]
        for number, verdict in zip(chosen, judged(side, problems, extract), strict=True):
            verdicts[number] = verdict
    pairs = [
        (case["right"], v is not None and v.reward == 1.0) for case, v in zip(cases, verdicts, strict=True)
    ]
    num = sum(said == right for right, said in pairs)
    low, high = wilson(num, len(pairs))
    return {
        "num_cases": len(pairs),
        "accuracy": num / len(pairs),
        "low": low,
        "high": high,
        "wrong_but_paid": sum(said and not right for right, said in pairs),
        "right_but_not_paid": sum(right and not said for right, said in pairs),
        "undecided": sum(v is None or not v.decided for v in verdicts),
    }


def hostile(side: str) -> dict[str, Any]:
    """What inputs made to be slow cost, and whether one of them was paid."""
    attempts = [(Problem("p", "?", "5"), Attempt(rf"\boxed{{{text}}}")) for text in HOSTILE]
    verdicts = judged(side, attempts, "boxed")
    seconds = [verdict.seconds for verdict in verdicts]
    return {
        "num": len(verdicts),
        "total_s": sum(seconds),
        "worst_s": max(seconds),
        "paid": sum(verdict.reward == 1.0 for verdict in verdicts),
        "killed": sum(verdict.outcome == "timeout" for verdict in verdicts),
        "undecided": sum(not verdict.decided for verdict in verdicts),
    }


def judged(side: str, attempts: Sequence[tuple[Problem, Attempt]], extract: str) -> list[Verdict]:
    """By one killable worker, as in training."""
    name = "math_answer" if side == "ours" else f"{HERE / 'math_side.py'}:math_verify"
    options = {"extract": extract} if side == "ours" else {}
    with VerifierPool(name, options=options, num_workers=1) as pool:
        futures = [pool.submit(problem, [attempt]) for problem, attempt in attempts]
        return [future.result()[0] for future in futures]


def total(answers: Sequence[Mapping[str, Any]], clock: str) -> float:
    """Seconds of one round."""
    return sum(float(one[clock]) for one in answers)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of them does not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def wilson(num: int, total: int) -> tuple[float, float]:
    """The 95% interval of a share (Wilson 1927)."""
    z, share = 1.96, num / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return centre - half, centre + half


if __name__ == "__main__":
    main()
