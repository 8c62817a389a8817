"""A verifier and cases, as one JSON object on stdin -> its verdicts from many threads, as JSON on stdout.

Started by verifiers/audit_stability.py as a process of its own, which is killed when it takes too long.
"""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from verigrad.verifiers import registry, services
from verigrad.verifiers.base import Attempt, Problem
from verigrad.verifiers.worker import die_with

NUM_THREADS = 4


def main() -> None:
    """Judge every case several times at once, none of them in the main thread."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a verifier that prints must not break into the answer
    order = json.load(sys.stdin)
    die_with(order["parent"])
    services.announce(order["services"])
    loaded = registry.load(order["verifier"], order["options"])
    if loaded.policy.warm_up:
        loaded.policy.warm_up()

    def judge(case: Any) -> tuple[float | None, str]:
        try:
            (verdict,) = loaded.judge(Problem(**case["problem"]), [Attempt(case["text"])], seed=order["seed"])
        except Exception as error:
            return None, f"{type(error).__name__}: {error}"[:300]
        return verdict.reward, verdict.reason

    with ThreadPoolExecutor(NUM_THREADS) as threads:
        said = list(threads.map(judge, order["cases"] * NUM_THREADS))
    json.dump(said, answers)
    answers.close()


if __name__ == "__main__":
    main()
