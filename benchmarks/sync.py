"""What each route of the weights to the sampler costs: `python benchmarks/sync.py`, a minute or two.

    python benchmarks/sync.py [--hidden 128 384] [--dtype float32] [--repeats 10] [--threads N]

For each size a small Llama is trained by random gradients, and after each optimizer step its weights go to
vLLM by each route in turn: `load_ms` is that without the proof, `canary_ms` the proof. `tokens_per_s` is how
fast the engine then samples, because one that keeps plain weights also computes with them. All by the
process's own clock, seconds of one core with one thread, which other work on the machine moves little. A row
for each route and size goes to results/sync.jsonl.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measured

HERE = Path(__file__).resolve().parent
ROUTES = ("reload", "copy", "shared")


def main() -> None:
    """Measure every route in a fresh process, and append a row for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--hidden", type=int, nargs="+", default=[128, 384], help="hidden sizes, multiples of 128"
    )
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the engine")
    parser.add_argument("--repeats", type=int, default=10, help="weight updates per route")
    parser.add_argument("--rounds", type=int, default=2, help="times that the routes take turns")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch and vLLM")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "sync.jsonl")
    parser.add_argument("--one", nargs=2, metavar=("ROUTE", "OUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        route, out = args.one
        Path(out).write_text(json.dumps(measure(route, args.hidden[0], args.dtype, repeats=args.repeats)))
        return
    routes = [route for route in ROUTES if args.dtype == "float32" or route != "shared"]
    for hidden in args.hidden:
        seen: dict[str, list[dict[str, Any]]] = {route: [] for route in routes}
        for _ in range(args.rounds):
            for route in routes:
                seen[route].append(in_fresh_process(route, hidden, args))
        for route in routes:
            row = {"route": route, "hidden": hidden, "dtype": args.dtype, "threads": args.threads}
            for name in seen[route][0]:
                row[name] = round(statistics.median(one[name] for one in seen[route]), 3)
            row["machine"] = measured.machine()
            measured.append_row(args.out, row)
            print(json.dumps({name: value for name, value in row.items() if name != "machine"}))


def in_fresh_process(route: str, hidden: int, args: argparse.Namespace) -> dict[str, Any]:
    """One route's figures; an engine of plain weights and one of packed weights cannot be the same."""
    with tempfile.TemporaryDirectory(prefix="verigrad-sync-") as folder:
        out = Path(folder) / "one.json"
        command = [sys.executable, str(HERE / "sync.py"), "--one", route, str(out), "--hidden", str(hidden)]
        command += ["--dtype", args.dtype, "--repeats", str(args.repeats)]
        env = measured.environment(args.threads)
        measured.run(command, env=env, folder=Path(folder), limit_s=600)
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def measure(route: str, hidden: int, dtype: str, *, repeats: int) -> dict[str, float]:
    """Weight updates by this route, proved, and the speed of sampling after them."""
    from verigrad.engine.machine import prepare_process

    prepare_process()
    import makers
    import torch
    from transformers import AutoTokenizer

    from verigrad.engine.config import Config, PromptsConfig, resolve
    from verigrad.engine.policy import Policy
    from verigrad.engine.prompts import Prompter
    from verigrad.engine.rollout import Sampler, SamplingParams, TokenRequest
    from verigrad.engine.rollout_backends import build_engine
    from verigrad.engine.sync import WeightSync
    from verigrad.verifiers.base import Problem

    with tempfile.TemporaryDirectory() as folder:
        sizes = {"hidden_size": hidden, "num_layers": 4, "vocab_size": 512}
        makers.model(Path(folder), seed=0, progress=lambda *_: None, ends=False, **sizes)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        settings = {
            "policy": {"model": folder, "dtype": dtype},
            "data": {"path": "unused"},
            "rollout": {"backend": "vllm", "max_prompt_tokens": 64, "max_tokens": 64},
            "sync": {"route": route},
        }
        cfg = resolve(Config.model_validate(settings))
        engine = build_engine(cfg, folder, eos_ids=[tokenizer.eos_token_id], seed=0)
        policy = Policy(cfg, folder, tokenizer=tokenizer, start_folder=folder)
    sampler = Sampler(engine, Prompter(tokenizer, PromptsConfig()))
    sync = WeightSync(policy, sampler, [Problem(str(i), f"{i} + {i} =", "") for i in range(2)], cfg=cfg)
    sync.connect()
    sync.push(0)
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-3, fused=True)
    loads, canaries = [], []
    for _ in range(repeats):
        for parameter in policy.model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        marks = [time.process_time()]
        engine.load_weights(policy.weights())
        marks.append(time.process_time())
        sync.prove()
        marks.append(time.process_time())
        loads.append(1e3 * (marks[1] - marks[0]))
        canaries.append(1e3 * (marks[2] - marks[1]))
    requests = [TokenRequest([5, 6, 7], seed=seed) for seed in range(256)]
    speeds = []
    for _ in range(3):
        start = time.process_time()
        outputs = list(engine.generate(requests, SamplingParams(1.0, 48)))
        speeds.append(sum(len(one.token_ids) for one in outputs) / (time.process_time() - start))
    return {
        "parameters": float(sum(p.numel() for p in policy.model.parameters())),
        "load_ms": statistics.median(loads),
        "canary_ms": statistics.median(canaries),
        "tokens_per_s": statistics.median(speeds),
    }


if __name__ == "__main__":
    main()
