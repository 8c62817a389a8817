"""Mathematical answers judged one after another in this process: python math_side.py SIDE IN.jsonl OUT.json.

Both sides are given the same text, without its thinking. `math_verify` is math-verify as its own page shows
it: parse the right answer, parse the response, verify, with its own time limits.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from verigrad.verifiers.base import Attempt, Verdict, verifier


@verifier("math_verify", deadline_s=30.0, canary={"response": r"\boxed{5}", "answer": "5"})
def math_verify(text: str, answer: Any) -> bool:
    """Right if math-verify says so."""
    from math_verify import parse, verify

    return bool(verify(parse(f"${answer}$"), parse(text)))


def ours(text: str, answer: Any) -> Verdict:
    """Right if math_answer says so."""
    from verigrad.verifiers.math_answer import math_answer

    return math_answer(text, answer)


SIDES: dict[str, Callable[[str, Any], Any]] = {"ours": ours, "math_verify": math_verify}


def main() -> None:
    """Judge once to warm up on the first rows, then everything with a clock on each answer."""
    side, source, out = sys.argv[1:]
    judge = SIDES[side]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rows = [json.loads(line) for line in Path(source).read_text().splitlines()]
    warm = [row for row in rows if row["warm_up"]]
    rows = [row for row in rows if not row["warm_up"]]
    for row in warm:
        judge(Attempt(row["response"]).final_text, row["answer"])
    results = []
    for row in rows:
        wall, cpu = time.perf_counter(), time.process_time()
        said = judge(Attempt(row["response"]).final_text, row["answer"])
        seconds = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
        right = said.reward == 1.0 if isinstance(said, Verdict) else bool(said)
        results.append({"right": right, **seconds})
    Path(out).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
