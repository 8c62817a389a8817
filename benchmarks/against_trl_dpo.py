"""`verigrad prefer` and TRL's DPOTrainer on the same pairs, in turn, in fresh processes: their ratios.

    python benchmarks/against_trl_dpo.py                       every work: 15 minutes on two cores
    python benchmarks/against_trl_dpo.py ragged [--rounds 1] [--steps 4]

TRL runs twice in a round: as it comes, with a reference model in memory, and with the reference's
log-probabilities computed beforehand, which is what ours does. The loss and the mean log-probability of the
chosen answers of every step are compared: both sides do the same work, or the race is void. Bar: no slower
and no larger, against either.
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import measured
import tomli_w
import trl_env

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "against_trl_dpo.jsonl"
SIDES = ("verigrad", "trl", "trl_precomputed")
LIMIT_S = 1800
MAX_DRIFT = 2e-3  # relative: float32 sums in another order, and the optimizer steps that follow from them


@dataclass(frozen=True, slots=True)
class Work:
    """One kind of work, fixed before anything is measured."""

    name: str
    title: str
    prompt_tokens: tuple[int, int]  # least and most, drawn evenly
    answer_tokens: tuple[int, int]  # drawn evenly on a logarithmic scale, the end of sequence among them
    pairs: int  # of one optimizer step
    model: Mapping[str, Any]  # options of makers.model
    steps: int = 8
    warmup: int = 2  # first steps, not counted
    rounds: int = 3
    seed: int = 0
    beta: float = 0.1
    lr: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8

    @property
    def longest(self) -> int:
        """Tokens of the longest possible sequence."""
        return self.prompt_tokens[1] + self.answer_tokens[1]


SMALL = {"hidden_size": 256, "num_layers": 4, "ends": True}
WORKS = (
    Work(
        name="ragged",
        title="answers of 16 to 256 tokens, prompts of 32 to 128, a vocabulary of 8192",
        prompt_tokens=(32, 128),
        answer_tokens=(16, 256),
        pairs=16,
        model=SMALL | {"vocab_size": 8192},
    ),
    Work(
        name="fixed",
        title="answers of 96 tokens, prompts of 32, a vocabulary of 512",
        prompt_tokens=(32, 32),
        answer_tokens=(96, 96),
        pairs=16,
        model=SMALL | {"vocab_size": 512},
    ),
)


def main() -> None:
    """Run what is asked for; exit status 1 when a bar is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [work.name for work in WORKS]
    parser.add_argument("work", nargs="*", default=names, help=f"of {', '.join(names)} (all)")
    parser.add_argument("--rounds", type=int, help="rounds of each work (else the work's)")
    parser.add_argument("--steps", type=int, help="steps of each run (else the work's); for trying it out")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of each side (all)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file that results are appended to")
    args = parser.parse_args()
    if unknown := sorted(set(args.work) - set(names)):
        parser.error(f"{unknown[0]!r} is none of {', '.join(names)}")
    python, missed = trl_env.ensure(), []
    for work in (work for work in WORKS if work.name in args.work):
        work = replace(work, rounds=args.rounds or work.rounds)
        work = replace(work, steps=max(args.steps or work.steps, work.warmup + 2))
        row = race(work, python, threads=args.threads)
        measured.append_row(args.out, row)
        print(table(row), flush=True)
        missed += [] if row["held"] else [work.name]
    if missed:
        raise SystemExit(f"bar missed: {', '.join(missed)}")


def race(work: Work, python: Path, *, threads: int) -> dict[str, Any]:
    """All rounds of one work, summed up."""
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for number in range(work.rounds):
        for side in SIDES:
            with tempfile.TemporaryDirectory(prefix="verigrad-race-") as folder:
                runs[side].append(run(work, side, Path(folder), python, threads=threads))
            last = runs[side][-1]
            print(
                f"{work.name} {number + 1}/{work.rounds} {side}: {last['step_s']['median']:.3f} s a step, "
                f"{last['peak_mib']:,.0f} MiB",
                flush=True,
            )
    machine = measured.machine()
    return {
        "race": work.name,
        "title": work.title,
        "machine": machine,
        "threads": threads,
        "work": asdict(work),
        **summarise(runs),
        "runs": runs,
    }


def run(work: Work, side: str, folder: Path, python: Path, *, threads: int) -> dict[str, Any]:
    """One side, once, in a fresh process."""
    from verigrad.engine import makers

    maker = f"{HERE / 'makers.py'}:model"
    model = makers.make_model(maker, seed=work.seed, options={**work.model, "max_positions": work.longest})
    write_pairs(folder / "pairs.jsonl", work)
    if side == "verigrad":
        recipe = folder / "recipe.toml"
        recipe.write_text(tomli_w.dumps(recipe_of(work, folder, model)))
        command = [sys.executable, str(HERE / "our_dpo_side.py"), str(folder / "out.json"), str(recipe)]
    else:
        job = asdict(work) | {"model_folder": str(model), "pairs_file": str(folder / "pairs.jsonl")}
        job |= {"precompute": side == "trl_precomputed", "longest": work.longest}
        (folder / "job.json").write_text(json.dumps(job))
        script = HERE / "trl_dpo_side.py"
        command = [str(python), str(script), str(folder / "job.json"), str(folder / "out.json")]
    more = {"TRANSFORMERS_VERBOSITY": "error", "VERIGRAD_CACHE": str(folder / "cache")}
    env = measured.environment(threads, **more)
    watched = measured.run(command, env=env, folder=folder, limit_s=LIMIT_S)
    record = json.loads((folder / "out.json").read_text())
    counted = record["steps"][work.warmup :]
    return {
        "step_s": measured.spread([step["wall_s"] for step in counted]),
        "cpu_s": measured.spread([step["cpu_s"] for step in counted]),
        "peak_mib": record["peak_mib"],
        "process_s": watched.wall_s,
        "loss": [step["loss"] for step in record["steps"]],
        "logprobs_chosen": [step["logprobs_chosen"] for step in record["steps"]],
        "all_steps_s": [round(step["wall_s"], 4) for step in record["steps"]],
        "versions": record["versions"],
    }


def recipe_of(work: Work, folder: Path, model: Path) -> dict[str, Any]:
    """The recipe of a work. What it does not name is left at its default."""
    return {
        "train": {"num_steps": work.steps, "seed": work.seed},
        "run": {"folder": str(folder / "run"), "save_every": 10**6},
        "data": {"path": str(folder / "pairs.jsonl"), "num_eval": 0, "shuffle": False},
        "policy": {"model": str(model)},
        "prefer": {"loss": "dpo", "beta": work.beta, "batch_size": work.pairs, "max_length": work.longest},
        "optim": {
            "lr": work.lr,
            "betas": list(work.betas),
            "eps": work.eps,
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
        },
        "eval": {"every": 0},
    }


def write_pairs(path: Path, work: Work) -> None:
    """Rows {prompt, chosen, rejected} of random letters, a token each; every step has pairs of its own."""
    rng = random.Random(f"race pairs {work.name} {work.seed}")

    def letters(num: int) -> str:
        return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(num))

    def answer() -> str:
        low, high = work.answer_tokens
        return letters(round(low * (high / low) ** rng.random()) - 1)  # and the end of sequence

    rows = [
        {"prompt": letters(rng.randint(*work.prompt_tokens) - 1), "chosen": answer(), "rejected": answer()}
        for _ in range(work.pairs * work.steps)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


# Results ---------------------------------------------------------------------------------------------------


def summarise(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Of each round TRL's seconds per step and peak memory over ours; the bar, and how far losses differ."""
    ratios: dict[str, dict[str, dict[str, float]]] = {}
    for side in SIDES[1:]:
        both = list(zip(runs["verigrad"], runs[side], strict=True))
        ratios[side] = {
            "step": spread([theirs["step_s"]["median"] / ours["step_s"]["median"] for ours, theirs in both]),
            "processor": spread(
                [theirs["cpu_s"]["median"] / ours["cpu_s"]["median"] for ours, theirs in both]
            ),
            "memory": spread([theirs["peak_mib"] / ours["peak_mib"] for ours, theirs in both]),
        }
    drift = max(
        abs(a - b) / max(abs(b), 1e-9)
        for side in SIDES[1:]
        for ours, theirs in zip(runs["verigrad"], runs[side], strict=True)
        for name in ("loss", "logprobs_chosen")
        for a, b in zip(ours[name], theirs[name], strict=True)
    )
    same = drift <= MAX_DRIFT
    held = same and all(ratio["median"] >= 1 for side in ratios.values() for ratio in side.values())
    return {"ratios": ratios, "drift": drift, "same_work": same, "held": held}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and largest of the rounds."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def table(row: Mapping[str, Any]) -> str:
    """The race as a table for documents."""
    lines = [
        f"### {row['title']}",
        "",
        "| side | s/step, median of rounds | x ours [rounds] | processor s/step | x ours [rounds] | "
        "peak MiB | x ours [rounds] |",
        "|---|---|---|---|---|---|---|",
    ]
    for side, runs in row["runs"].items():
        seconds = statistics.median(run["step_s"]["median"] for run in runs)
        peak = statistics.median(run["peak_mib"] for run in runs)
        ratios = row["ratios"].get(side)
        busy = statistics.median(run["cpu_s"]["median"] for run in runs)
        told = [shown(ratios[name]) if ratios else "1" for name in ("step", "processor", "memory")]
        numbers = f"{seconds:.3f} | {told[0]} | {busy:.2f} | {told[1]} | {peak:,.0f} | {told[2]}"
        lines.append(f"| {side} | {numbers} |")
    bar = "held" if row["held"] else "MISSED" if row["same_work"] else "void, the sides did other work"
    drift = f"Largest relative difference of a loss or log-probability: {row['drift']:.1e}."
    load = f"Load before the end: {row['machine']['load_1min']}."
    return "\n".join([*lines, "", f"Bar, no slower and no larger: {bar}. {drift} {load}", ""])


def shown(ratio: Mapping[str, float]) -> str:
    """A ratio with its least and largest round."""
    return f"{ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"


if __name__ == "__main__":
    main()
