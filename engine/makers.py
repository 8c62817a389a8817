"""Makers: a reference to a Python function -> rows of data, or a model folder made once and kept.

A maker is `package.module:function`, `path/file.py:function`, or `SCHEME:REST` of the table SCHEMES. One that
makes data is called as `function(seed=..., **options)` and returns rows; one that makes a model is called as
`function(folder, seed=..., progress=..., **options)` and writes a Hugging Face model folder. A maker is code
of the user's own and runs in this process, not in a sandbox.
"""

import functools
import hashlib
import importlib
import importlib.util
import inspect
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

from filelock import FileLock, Timeout

from verigrad.engine import environment
from verigrad.engine.config import ConfigError
from verigrad.verifiers import blame

Progress = Callable[[str, float], None]
"""Told what is being done, and the share of it that is done."""

# `SCHEME:REST` is made by the function here, which takes REST before the options: other people's task sets.
SCHEMES = {
    "prime": "verigrad.verifiers.adapters.prime:rows",
    "reasoning_gym": "verigrad.verifiers.adapters.reasoning_gym:rows",
}
REFERENCE = re.compile(r"(?P<place>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*|.+\.py):(?P<function>[A-Za-z_]\w*)")


@dataclass(frozen=True, slots=True)
class Maker:
    """A function that makes data or a model, and the module it came from."""

    reference: str
    function: Callable[..., Any]
    module: ModuleType


def is_maker(reference: str) -> bool:
    """Whether this names a function or an environment, rather than a file, a folder or a hub id."""
    is_task_set = _scheme(reference) in SCHEMES or environment.named(reference) is not None
    return is_task_set or REFERENCE.fullmatch(reference) is not None


def make_rows(reference: str, *, seed: int, options: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The rows a data maker returns; nothing is cached."""
    maker = find(reference)
    check_options(maker, given=("seed",), options=options)
    rows = call(maker, seed=seed, **options)
    if isinstance(rows, str | bytes | Mapping) or not hasattr(rows, "__iter__"):
        raise ConfigError(
            f"{reference} returned {type(rows).__name__}: a data maker returns rows, a list of dicts with "
            "'prompt' and 'answer'. Return such a list."
        )
    return rows if isinstance(rows, Sequence) else list(rows)


def make_model(
    reference: str, *, seed: int, options: Mapping[str, Any], progress: Progress | None = None
) -> Path:
    """The folder of the model this maker makes from this seed and these options; made at most once.

    It is kept in the cache. Its key holds the maker's source, the sources listed in `__maker_sources__` and
    the versions of torch and transformers; what else the maker imports or reads does not count.
    """
    maker = find(reference)
    check_options(maker, given=("folder", "seed", "progress"), options=options)
    report = progress or (lambda message, fraction: None)
    name = cache_name(maker, seed=seed, options=options)

    def make(part: Path) -> None:
        call(maker, part, seed=seed, progress=report, **options)
        if not (part / "config.json").is_file():
            raise ConfigError(
                f"{maker.reference} wrote no config.json: a model maker writes a Hugging Face model folder "
                "into its first argument. Call model.save_pretrained(folder) and "
                "tokenizer.save_pretrained(folder)."
            )

    return make_once(name, make, progress=report)


def make_once(name: str, make: Callable[[Path], None], *, progress: Progress | None = None) -> Path:
    """The folder `name` of the cache, which `make` fills unless it is there; never half of it."""
    report = progress or (lambda message, fraction: None)
    cache = cache_folder() / "made"
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / name
    if folder.is_dir():
        return folder
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report(f"another process is making {folder.name}: waiting for it", 0.0)
        lock.acquire()
    try:
        if not folder.is_dir():
            make_into(folder, make)
    finally:
        lock.release()
    return folder


def make_into(folder: Path, make: Callable[[Path], None]) -> None:
    """Let `make` fill another folder, which becomes `folder` once complete; the caller holds the lock."""
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # what a killed maker left
    part.mkdir()
    try:
        make(part)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def call(maker: Maker, *args: Any, **kwargs: Any) -> Any:
    """Call the function; a ValueError is about what it was asked for, so it is for the user to read."""
    try:
        return maker.function(*args, **kwargs)
    except ConfigError:
        raise
    except ValueError as error:
        where = blame.place(error)
        raise ConfigError(f"{maker.reference}: {error}{f' ({where})' if where else ''}") from error


def find(reference: str) -> Maker:
    """Import the function a reference names; of an environment, the one that makes its rows."""
    if (name := environment.named(reference)) is not None:
        rows = environment.load(name).rows
        return Maker(reference, rows, sys.modules[rows.__module__])
    if path := SCHEMES.get(_scheme(reference)):
        place, _, name = path.partition(":")
        module = module_of_name(place)
        rest = reference.partition(":")[2]
        return Maker(reference, functools.partial(getattr(module, name), rest), module)
    match = REFERENCE.fullmatch(reference)
    if match is None:
        raise ConfigError(
            f"{reference!r} is no maker: expected package.module:function or path/file.py:function."
        )
    place, name = match["place"], match["function"]
    module = module_of_file(Path(place)) if place.endswith(".py") else module_of_name(place)
    function = getattr(module, name, None)
    if not callable(function):
        there = [
            k for k, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__
        ]
        raise ConfigError(
            f"{reference}: {place} has no function {name!r}; it has {', '.join(sorted(there)) or 'none'}. "
            "Name one of them."
        )
    return Maker(reference, function, module)


def _scheme(reference: str) -> str:
    return reference.partition(":")[0] if ":" in reference else ""


def module_of_name(name: str) -> ModuleType:
    """Import a module; one found only in the working folder counts, as for `python -m`."""
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            # the maker is there, and lacks something it imports
            raise ConfigError(blame.import_failure(error, name)) from error
        raise ConfigError(
            f"no module {error.name!r} for the maker {name}: install the package it is in, run from the "
            "folder it lies in, or name its file as path/file.py:function."
        ) from error


def module_of_file(path: Path) -> ModuleType:
    """Run a Python file as a module of its own; the same file is run once per process."""
    if not path.is_file():
        raise ConfigError(f"no file {path} for a maker (looked from {Path.cwd()}). Correct the path.")
    name = (
        f"verigrad_maker_{hashlib.sha256(str(path.resolve()).encode() + path.read_bytes()).hexdigest()[:16]}"
    )
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, SyntaxError | ImportError):
            raise ConfigError(blame.import_failure(error, path.name)) from error
        raise
    return module


def check_options(maker: Maker, *, given: Sequence[str], options: Mapping[str, Any]) -> None:
    """Refuse options the function does not take, and a function that refuses what every maker is given."""
    parameters = list(inspect.signature(maker.function).parameters.values())
    if given[0] == "folder":  # given by place: its name is the maker's own affair
        given, parameters = given[1:], parameters[1:]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    known = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    missing = [name for name in given if name not in known]
    if missing and not takes_any:
        raise ConfigError(
            f"{maker.reference} does not take {' and '.join(missing)}: a maker of this kind is called with "
            f"{' and '.join(given)}. Add the missing ones to its arguments."
        )
    takes = [name for name in known if name not in given]
    for name in options:
        if name in given or (name not in takes and not takes_any):
            raise ConfigError(
                f"{maker.reference} takes no option {name!r}; it takes {', '.join(takes) or 'none'}. "
                "Remove it, or correct its name."
            )
    needed = {p.name for p in parameters if p.default is p.empty and p.name in takes}
    if absent := sorted(needed - set(options)):
        raise ConfigError(f"{maker.reference} needs the option {absent[0]!r}. Add it to `options`.")


def cache_folder() -> Path:
    """Where what was made is kept: $VERIGRAD_CACHE, else $XDG_CACHE_HOME/verigrad, else ~/.cache/verigrad."""
    if own := os.environ.get("VERIGRAD_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "verigrad"


def cache_name(maker: Maker, *, seed: int, options: Mapping[str, Any]) -> str:
    """MODULE-FUNCTION-HASH; the hash changes with anything the result depends on."""
    sources = [maker.module.__file__]
    for name in getattr(maker.module, "__maker_sources__", ()):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise ConfigError(
                f"{maker.reference}: __maker_sources__ names {name!r}, which is no module here. Correct it."
            )
        sources.append(spec.origin)
    key = {
        "function": maker.function.__name__,
        "sources": [Path(source).read_text(encoding="utf-8") for source in sources if source],
        "seed": seed,
        "options": dict(options),
        "versions": [version("torch"), version("transformers")],
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=repr).encode()).hexdigest()
    stem = Path(maker.module.__file__ or maker.module.__name__).stem
    return f"{stem}-{maker.function.__name__}-{digest[:16]}"
