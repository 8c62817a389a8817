"""`verigrad eval`: models and run folders to scores on held-out problems, compared problem by problem."""

import argparse
from typing import Any

EXAMPLE = """\
examples:
  verigrad eval runs/quickstart
  verigrad eval Qwen/Qwen3-0.6B --data aime.jsonl --verifier math_answer --n 16
  verigrad eval Qwen/Qwen3-0.6B runs/mine --n 8 --by level -o compared
  verigrad eval Qwen/Qwen3-0.6B runs/mine --suite general

A RUN brings its recipe: prompts, verifier, evaluation sets and temperature. The first model is what the
others are compared with. Scores are means over problems; intervals are 95% and count problems, not samples.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `verigrad eval`."""
    parser.description = "Sample held-out problems, judge the answers, and say how sure the scores are."
    parser.epilog = EXAMPLE
    parser.usage = "verigrad eval MODEL|RUN [MODEL|RUN ...] [options] [section.key=value ...]"
    parser.add_argument(
        "words", nargs="+", metavar="MODEL|RUN",
        help="a model's folder, a hub id, a maker, a run folder or a checkpoint in one; or section.key=value",
    )  # fmt: skip
    add = parser.add_argument
    add(
        "--data",
        action="append",
        default=[],
        metavar="D",
        help="a .jsonl, .parquet or .csv file, hub id or maker, in place of the recipe's sets; repeatable",
    )
    add("--verifier", metavar="V", help="who judges (default: the recipe's, else math_answer)")
    add(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the verifier; repeatable",
    )
    add("--n", type=int, metavar="N", help="samples per problem (default: the recipe's, else 1)")
    add(
        "--temperature",
        type=float,
        metavar="T",
        help="default: the recipe's; else 1 for several samples, and 0 (greedy) for one",
    )
    add("--greedy", action="store_true", help="the same as --n 1 --temperature 0")
    add("--max-tokens", type=int, metavar="L", help="longest completion (default: the recipe's, else 1024)")
    add(
        "--pass-k",
        type=numbers,
        metavar="K,K,...",
        help="k of pass@k and maj@k (default: the recipe's, else powers of two up to N)",
    )
    add("--by", metavar="COLUMN", help="a column that sorts problems into categories, each with its scores")
    add("--num", type=int, metavar="P", help="at most this many problems of each set")
    add("--step", type=int, metavar="S", help="which checkpoint of a run (default: its newest whole one)")
    add(
        "--suite",
        metavar="SUITE",
        help="measure side effects: a shipped suite's name or a .toml file, in place of the recipe's sets",
    )
    add("--recipe", metavar="RECIPE", help="take all settings from this recipe")
    add("--seed", type=int, metavar="SEED", help="seed of the sampling (default: the recipe's, else 0)")
    add("--json", action="store_true", help="one JSON object on standard output")
    add("-o", "--output", metavar="FOLDER", help="also write eval.jsonl and every rollout as Parquet there")
    take_words_anywhere(parser)


def numbers(text: str) -> list[int]:
    """`1,4,16` as numbers, in order and each once."""
    return sorted({int(word) for word in text.split(",")})


def take_words_anywhere(parser: argparse.ArgumentParser) -> None:
    """Let models and settings stand between options: argparse takes one unbroken row of words only."""
    plain = parser.parse_known_args

    def parse(args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        parsed, rest = plain(args, namespace)
        parsed.words = [*parsed.words, *(word for word in rest if not word.startswith("-"))]
        return parsed, [word for word in rest if word.startswith("-")]

    parser.parse_known_args = parse  # type: ignore[method-assign]


def run(args: argparse.Namespace) -> int:
    """Evaluate every model of the command line; returns the exit status."""
    from verigrad.engine import eval_plan

    planned = eval_plan.plan(args)  # what is cheap to get wrong is said before torch is imported
    from verigrad.engine.machine import prepare_process

    prepare_process()
    from verigrad.engine import eval_run

    return eval_run.run(planned, seed=args.seed, output=args.output, as_json=args.json, suite=args.suite)
