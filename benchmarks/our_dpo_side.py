"""One measured run of `verigrad prefer`: python our_dpo_side.py OUT.json RECIPE.

The real command's path. The only addition is a screen that looks at the clock when it is shown a step.
"""

import json
import resource
import sys
import time
from pathlib import Path

from verigrad.engine.machine import prepare_process


def main(out: Path, recipe: str) -> int:
    """Train, then write what the steps took."""
    started = time.perf_counter(), time.process_time()
    prepare_process()
    from verigrad.engine import config
    from verigrad.engine.prefer import prefer
    from verigrad.engine.run import read_jsonl
    from verigrad.engine.screen import Screen

    class Watch(Screen):
        """A screen that notes when each step was shown."""

        marks: list[tuple[float, float]] = []  # noqa: RUF012

        def progress(self, text: str, fraction: float) -> None:
            """One training step done, or some other progress."""
            if text.startswith("step "):
                self.marks.append((time.perf_counter(), time.process_time()))
            super().progress(text, fraction)

    cfg = config.load(recipe, [])
    with Watch() as screen:
        status = prefer(cfg, screen)
    folder = Path(cfg.run.folder)
    rows = read_jsonl(folder / "metrics.jsonl")
    steps = [
        {
            "wall_s": after[0] - before[0],
            "cpu_s": after[1] - before[1],
            "loss": row["loss"],
            "logprobs_chosen": row["logprobs_chosen"],
        }
        for row, before, after in zip(rows, [started, *screen.marks], screen.marks, strict=False)
    ]
    record = {
        "steps": steps,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "versions": json.loads((folder / "environment.json").read_text())["versions"],
    }
    out.write_text(json.dumps(record))
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
