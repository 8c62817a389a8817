"""One measured run of `verigrad train`: python our_side.py OUT.json RECIPE [section.key=value ...].

The real command's path, from recipe to summary. The only addition is a screen that looks at the clock when it
is shown a step: the time between two looks is a step's, with all that the loop does around it.
"""

import importlib.util
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from verigrad.engine.machine import prepare_process

PHASES = {"rollout": "generate", "verify": "verify", "train": "update", "sync": "sync"}


def main(out: Path, recipe: str, overrides: Sequence[str]) -> int:
    """Train, then write what the steps took."""
    started = time.perf_counter(), time.process_time()
    prepare_process()
    import torch

    from verigrad.engine import config
    from verigrad.engine.run import read_jsonl
    from verigrad.engine.screen import Screen
    from verigrad.engine.train import train

    class Watch(Screen):
        """A screen that notes when each step was shown."""

        marks: list[tuple[float, float]] = []  # noqa: RUF012

        def step(self, row: Mapping[str, Any], num_steps: int) -> None:
            """One training step done."""
            self.marks.append((time.perf_counter(), time.process_time()))
            super().step(row, num_steps)

    cfg = config.load(recipe, overrides)
    if cfg.rollout.backend != "transformers" and importlib.util.find_spec("vllm"):
        import vllm  # noqa: F401 - it is imported anyway, and is not what a run needs memory for
    imports_mib = psutil.Process().memory_info().rss / 2**20
    with Watch() as screen:
        status = train(cfg, screen)
    folder = Path(cfg.run.folder)
    rows = read_jsonl(folder / "metrics.jsonl")
    steps = [describe(folder, row) for row in rows]
    for step, before, after in zip(steps, [started, *screen.marks], screen.marks, strict=False):
        # The first step's hold all that comes before it; processor time is this process's own.
        step["wall_s"], step["cpu_s"] = after[0] - before[0], after[1] - before[1]
    on_gpu = torch.cuda.is_available()
    record = {
        "steps": steps,
        "imports_mib": imports_mib,
        "peak_gpu_mib": torch.cuda.max_memory_reserved() / 2**20 if on_gpu else None,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "versions": json.loads((folder / "environment.json").read_text())["versions"],
        "evals": read_jsonl(folder / "eval.jsonl"),
    }
    out.write_text(json.dumps(record))
    return status


def describe(folder: Path, row: Mapping[str, Any]) -> dict[str, Any]:
    """A step's phases in seconds and its tokens: what was sampled, and what was trained on."""
    import pyarrow.parquet as pq

    table = pq.read_table(
        folder / "rollouts" / f"step_{row['step']:06d}.parquet", columns=["loss_mask", "kept"]
    ).to_pylist()
    lengths = [sum(rollout["loss_mask"]) for rollout in table]
    phases = {ours: row.get(f"seconds/{name}", 0.0) for name, ours in PHASES.items()}
    return {
        "step": row["step"],
        "phases_s": phases,
        "loop_s": row["seconds/total"],
        "generated_tokens": sum(lengths),
        "trained_tokens": sum(n for n, rollout in zip(lengths, table, strict=True) if rollout["kept"]),
        "longest": max(lengths),
        "rollouts": len(table),
        "reward": row["reward"],
    }


if __name__ == "__main__":
    from verigrad.engine.config import ConfigError
    from verigrad.engine.failures import WorkError

    try:
        sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
    except (ConfigError, WorkError) as error:
        sys.exit(f"verigrad: {error}")
