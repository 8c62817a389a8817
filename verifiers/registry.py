"""A verifier's name, import path or file -> a LoadedVerifier. Listing the names imports none of them."""

import ast
import difflib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from verigrad.verifiers import blame
from verigrad.verifiers.binding import LoadedVerifier, bind

GROUP = "verigrad.verifiers"
BUILTIN = {
    "agent_task": "verigrad.verifiers.agent_task:AgentTask",
    "answer_format": "verigrad.verifiers.answer_format:answer_format",
    "combine": "verigrad.verifiers.combine:Combine",
    "countdown": "verigrad.verifiers.countdown:countdown",
    "exact_match": "verigrad.verifiers.exact_match:exact_match",
    "instruction_following": "verigrad.verifiers.instruction_following:instruction_following",
    "json_schema": "verigrad.verifiers.json_schema:json_schema",
    "judge_score": "verigrad.verifiers.judged:JudgeScore",
    "language_consistency": "verigrad.verifiers.language_consistency:language_consistency",
    "length_budget": "verigrad.verifiers.length_budget:length_budget",
    "math_answer": "verigrad.verifiers.math_answer:math_answer",
    "multiple_choice": "verigrad.verifiers.multiple_choice:multiple_choice",
    "process_reward": "verigrad.verifiers.learned_reward:ProcessReward",
    "program_output": "verigrad.verifiers.program_output:ProgramOutput",
    "random": "verigrad.verifiers.random_reward:random_reward",
    "reasoning_gym": "verigrad.verifiers.adapters.reasoning_gym:ReasoningGym",
    "refusal": "verigrad.verifiers.refusal:refusal",
    "repetition": "verigrad.verifiers.repetition:repetition",
    "reward_model": "verigrad.verifiers.learned_reward:RewardModel",
    "rubric": "verigrad.verifiers.judged:Rubric",
    "unit_tests": "verigrad.verifiers.unit_tests:UnitTests",
}

# `SCHEME:REST` is a verifier of another library; the class here is made from REST and the options.
SCHEMES = {
    "prime": "verigrad.verifiers.adapters.prime:PrimeTask",
    "trl": "verigrad.verifiers.adapters.trl:TrlReward",
    "verl": "verigrad.verifiers.adapters.verl:ComputeScore",
}


def available() -> dict[str, str]:
    """Every verifier that has a name, and where it comes from; imports none of them."""
    where = dict.fromkeys(BUILTIN, "built-in")
    for name, point in installed().items():
        where[name] = f"{_distribution(point)} ({point.value})"
    return dict(sorted(where.items()))


def load(name: str, options: Mapping[str, Any] | None = None) -> LoadedVerifier:
    """Find a verifier by built-in name, installed entry point, `path/file.py:name` or `package.module:name`.

    `trl:`, `verl:` or `prime:` before such a path adapts what it names: see docs/adapters.md. Raises
    ValueError with the nearest right name for an unknown verifier or option.
    """
    scheme, colon, rest = name.partition(":")
    if colon and scheme in SCHEMES:
        given = {**(options or {}), "reference": rest}
        return bind(find(SCHEMES[scheme]), name=name, source=SCHEMES[scheme], options=given)
    plugins = installed()
    path = plugins[name].value if name in plugins else BUILTIN.get(name, name)
    target = find(path, name=name)
    attribute = path.rpartition(":")[2]
    return bind(target, name=attribute if path == name else name, source=path, options=options or {})


def find(path: str, *, name: str = "", what: str = "verifier") -> Any:
    """What `path/file.py:name` or `package.module:name` names; ValueError says what is not there.

    `name` is what the user wrote, `what` the kind of thing it should be.
    """
    name = name or path
    module, colon, attribute = path.rpartition(":")
    if not colon or not module or not attribute:
        if what != "verifier":
            raise ValueError(f"{what} {name!r}: expected path/file.py:name or package.module:name")
        raise ValueError(_unknown(name))
    loaded = _from_file(module, what) if module.endswith(".py") else _from_module(name, module, what)
    target: Any = loaded
    for part in attribute.split("."):
        if not hasattr(target, part):
            near = difflib.get_close_matches(part, [n for n in vars(loaded) if not n.startswith("_")], n=1)
            hint = f"did you mean {near[0]!r}?" if near else "check the name after the colon"
            raise ValueError(f"{what} {name!r}: {module} has nothing called {part!r}; {hint}")
        target = getattr(target, part)
    return target


def installed() -> dict[str, EntryPoint]:
    """The entry points of other packages; two that claim one name are refused."""
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        other = "a built-in verifier" if point.name in BUILTIN else None
        if point.name in found and found[point.name].value != point.value:
            other = _distribution(found[point.name])
        if other:
            raise ValueError(
                f"{_distribution(point)} registers the verifier {point.name!r}, a name taken by {other}; "
                "rename the entry point, or uninstall one of the two"
            )
        found[point.name] = point
    return found


def _from_file(file: str, what: str) -> Any:
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        raise ValueError(f"{what} file {file} does not exist (looked at {path}); correct the path")
    # Two files of one name are two plug-ins, so the module is named after the whole path.
    name = f"verigrad_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, Exception | SystemExit):
            raise ValueError(blame.import_failure(error, path.name)) from error
        raise
    return module


def _from_module(name: str, module: str, what: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(error.name + ".")):
            raise ValueError(
                f"{what} {name!r}: no module {error.name!r} to import; install the package that has it, "
                "or write path/to/file.py:name"
            ) from error
        raise ValueError(blame.import_failure(error, module)) from error
    except (Exception, SystemExit) as error:
        raise ValueError(blame.import_failure(error, module)) from error


def _unknown(name: str) -> str:
    names = available()
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
    file = Path(name if name.endswith(".py") else f"{name}.py").expanduser()
    if name.endswith(".py") or file.is_file():
        there = ", ".join(_functions(file)) or "the function in that file"
        return f"verifier {name!r} is not known; write {file}:NAME, where NAME is {there}"
    return f"verifier {name!r} is not known; {hint} (or path/file.py:name, or package.module:name)"


def _functions(file: Path) -> list[str]:
    """The public functions and classes at the top of a file, which is read and not run."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]


def _distribution(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an installed package"
