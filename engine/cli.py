"""`verigrad VERB ...`: knows the verbs' names and how their errors end; each verb is the file of that name.

Exit status: 0 done, 1 the work failed, 2 the user's input is wrong, 130 interrupted.
"""

import argparse
import contextlib
import difflib
import errno
import importlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

INTERRUPTED = 130
STATUSES = "exit status: 0 done, 1 the work failed, 2 your input is wrong, 130 interrupted\n"
VERBS = {
    "train": "train a model from verifiable rewards, or a recipe's stages in order; resumes by itself",
    "sft": "fine-tune a model on written answers; resumes by itself",
    "prefer": "train on preferences: DPO, IPO, KTO, ORPO, SimPO, CPO; resumes by itself",
    "reward": "train reward models on preferences or labelled steps; resumes by itself",
    "label": "have a judge prefer, score or revise answers (RLAIF, Constitutional AI); resumes by itself",
    "sample": "sample a model's answers and keep those that the verifier accepts; resumes by itself",
    "algorithms": "list the algorithms there are, and what each is made of",
    "eval": "score models and run folders on held-out problems, and compare them",
    "verify": "score a file of answers with a verifier",
    "verifiers": "list the verifiers there are, and where each comes from",
    "audit": "attack a verifier before training on it, or put a sandbox through the conformance suite",
    "replay": "judge recorded rollouts again, with the same verifier or another one",
    "card": "write the model card of a run: data, rewards, results, failures, risks",
    "sandboxes": "list the sandboxes there are and which work here; --build makes the container's image",
}
"""Verb -> what it does. Those of RECIPE_VERBS take a recipe; the others bring their own arguments."""

RECIPE_VERBS = ("train", "sft", "prefer", "reward", "label", "sample")

MODULES = {
    "algorithms": "verigrad.engine.list_algorithms",
    "audit": "verigrad.engine.audit",
    "card": "verigrad.engine.card",
    "eval": "verigrad.engine.eval",
    "replay": "verigrad.engine.replay",
    "sandboxes": "verigrad.engine.list_sandboxes",
    "verify": "verigrad.engine.verify",
    "verifiers": "verigrad.engine.list_verifiers",
}

REMEDIES = {
    errno.ENOENT: "correct the path, or make its folder",
    errno.ENOTDIR: "correct the path",
    errno.EISDIR: "name a file",
    errno.EACCES: "change its permissions, or name another",
    errno.EROFS: "name another",
    errno.ENOSPC: "free some space",
}
"""What can be done about an error of the system."""

RECIPE_EXAMPLES = {
    "train": """examples:
  verigrad train quickstart
  verigrad train quickstart train.seed=1 run.folder=runs/seed1
  verigrad train my_recipe.toml --dry-run
""",
    "sft": """examples:
  verigrad sft my_answers.toml
  verigrad sft my_answers.toml optim.lr=2e-5 sft.batch_size=64
  verigrad sft my_answers.toml --dry-run
""",
    "prefer": """examples:
  verigrad prefer my_pairs.toml
  verigrad prefer my_pairs.toml prefer.loss=simpo optim.lr=1e-6
  verigrad prefer my_pairs.toml data.path=runs/NAME     pairs made of a run's rollouts
""",
    "reward": """examples:
  verigrad reward my_pairs.toml
  verigrad reward my_pairs.toml reward.members=3 reward.split=folds
  verigrad reward my_steps.toml reward.kind=steps
""",
    "label": """examples:
  verigrad label my_questions.toml
  verigrad label my_questions.toml label.constitution=principles.md judge.url=http://localhost:8000/v1
  verigrad label my_questions.toml label.task=revise
""",
    "sample": """examples:
  verigrad sample my_problems.toml
  verigrad sample my_problems.toml sample.num_samples=16 sample.keep_per_problem=2
  verigrad sample my_problems.toml --dry-run
""",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one verb and exit with its status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    sys.exit(guarded(argv))


def guarded(argv: Sequence[str]) -> int:
    """Run the verb; an error a user can cause is one line without a traceback (`--debug` shows it)."""
    args = parse(argv)
    try:
        run: Callable[[argparse.Namespace], int] = args.run
        status = run(args)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        resumes = "; what was saved is in the run folder, the same command goes on"
        print(f"verigrad: stopped{resumes if args.verb in RECIPE_VERBS else ''}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        return output_closed()
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):  # so says rich
            return output_closed()
        raise
    except Exception as error:
        ends = status_of(error)
        if args.debug or ends is None:
            traceback.print_exc()
        else:
            print(f"verigrad: {in_words(error)}", file=sys.stderr)
        return 1 if ends is None else ends


def output_closed() -> int:
    """Say that whoever read the output is gone, and keep Python from saying it again when it exits."""
    with contextlib.suppress(OSError, ValueError):  # the error output may be the same pipe, or no file
        print("verigrad: stopped: the reader of its output is gone (as of `| head`)", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def status_of(error: Exception) -> int | None:
    """2 for the user's input, 1 for work that failed, None for a fault of ours, which keeps its traceback."""
    from verigrad.engine.config import ConfigError
    from verigrad.engine.failures import WorkError

    if isinstance(error, ConfigError):
        return 2
    return 1 if isinstance(error, WorkError | OSError) else None


def in_words(error: Exception) -> str:
    """An error in one line; one of the system names its file first, and what can be done about it."""
    if not isinstance(error, OSError) or not error.strerror or error.filename is None:
        return str(error)
    remedy = REMEDIES.get(error.errno or 0)
    return f"{error.filename}: {error.strerror.lower()}" + (f"; {remedy}" if remedy else "")


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with the words, and of which verb."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        more = "" if "--help" in message else f"; see {self.prog} --help"
        print(f"verigrad: {message}{more}", file=sys.stderr)
        self.exit(2)

    def refuse(self, words: Sequence[str]) -> NoReturn:
        """Say of words that no argument took what was meant by them."""
        options = [name for action in self._actions for name in action.option_strings]
        said = []
        for word in (word for word in words if word.startswith("-")):
            near = difflib.get_close_matches(word.partition("=")[0], options, n=1)
            said.append(f"{word}: no such option" + (f", did you mean {near[0]}?" if near else ""))
        self.error("; ".join(said) or f"{' '.join(words)}: more words than it takes")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Only the named verb is imported, and one with a recipe not before it runs: help needs no torch."""
    parser = Parser(
        prog="verigrad", description="Train reasoning models from verifiable rewards.",
        epilog=f"{RECIPE_EXAMPLES['train']}\n{STATUSES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action=Version, nargs=0, help="print the version and exit")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    named = next((word for word in argv if not word.startswith("-")), None)
    if not argv:
        parser.error(f"what is to be done? {', '.join(VERBS)}; see verigrad --help")
    if problem := misspelt(argv, named):
        parser.error(problem)
    parsers: dict[str, Parser] = {}
    for verb, what in VERBS.items():
        sub = parsers[verb] = verbs.add_parser(verb, help=what, description=what[0].upper() + what[1:] + ".",
                               formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if verb in RECIPE_VERBS:
            add_recipe_arguments(sub, verb)
        elif verb == named:
            module = importlib.import_module(MODULES[verb])
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
        sub.epilog = f"{sub.epilog or ''}\n{STATUSES}"
    if named in RECIPE_VERBS:  # argparse takes no settings after a flag
        argv = sorted(argv, key=lambda word: word.startswith("-"))
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        parsers[args.verb].refuse(unknown)
    return args


def misspelt(argv: Sequence[str], verb: str | None) -> str | None:
    """What argparse would say worse: a verb that there is not, and a setting written as an option."""
    if verb is not None and verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        return f"no verb {verb!r}; " + (f"did you mean {near[0]}?" if near else f"verbs: {', '.join(VERBS)}")
    dashed = next((word for word in argv if re.match(r"--?\w+\.\w+=", word)), None)
    if verb in (*RECIPE_VERBS, "audit", "eval") and dashed:
        return f"{dashed}: settings are written without --: {dashed.lstrip('-')}"
    return None


class Version(argparse.Action):
    """`--version`, looked up only when asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        """Print it and exit."""
        from importlib.metadata import version

        print(f"verigrad {version('verigrad')}")
        parser.exit()


def add_recipe_arguments(parser: argparse.ArgumentParser, verb: str) -> None:
    """What every verb that takes a recipe takes."""
    parser.epilog = RECIPE_EXAMPLES[verb]
    parser.add_argument("recipe", help="a .toml file, or the name of a shipped recipe")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],  # without it argparse calls them required
        metavar="section.key=value",
        help="settings that replace the recipe's",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check settings and verifier, print the resolved recipe and its batch algebra; reads no data",
    )
    if verb == "train":
        parser.add_argument(
            "--trace",
            action="store_true",
            help="write trace.json into the run folder: what was done when, for https://ui.perfetto.dev",
        )
    parser.set_defaults(run=run_recipe)


def run_recipe(args: argparse.Namespace) -> int:
    """Load the recipe; then, unless it is a dry run, import the engine and do what the verb says."""
    from verigrad.engine import config, dry_run, stages

    trace = getattr(args, "trace", False)
    if trace and stages.has_stages(args.recipe):
        raise config.ConfigError("--trace is of one run, and this recipe has stages; trace one stage's own")
    if args.verb == "train" and stages.has_stages(args.recipe):
        return stages.run(args.recipe, args.overrides, dry_run=args.dry_run, debug=args.debug)
    cfg = config.load(args.recipe, args.overrides, verb=args.verb)
    if args.dry_run:
        dry_run.check(cfg)
        print(config.to_toml(cfg))
        for name, value in config.batch_algebra(cfg):
            print(f"# {name}: {value}")
        return 0
    from verigrad.engine.machine import prepare_process

    prepare_process()
    from verigrad.engine import trace_file
    from verigrad.engine.screen import Screen

    with Screen() as screen:
        screen.say(f"{Path(args.recipe).stem} -> {cfg.run.folder}")
        tracing = trace_file.into(Path(cfg.run.folder), screen.say) if trace else contextlib.nullcontext()
        with tracing:
            with trace_file.span("import"):
                work = importlib.import_module(f"verigrad.engine.{args.verb}")
            do: Callable[[config.Config, Screen], int] = getattr(work, args.verb)  # named as its file
            return do(cfg, screen)


if __name__ == "__main__":
    main()
