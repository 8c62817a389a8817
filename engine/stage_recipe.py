"""A recipe of stages to one checked Config per stage, in order. Importing this must stay cheap (no torch).

A stage is a [[stage]] table: `name`, `verb`, and section tables that win over the recipe's own sections. What
its command does not read of the shared sections is left out for it. docs/stages.md has the rules.
"""

import copy
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from verigrad.engine import config, config_verbs
from verigrad.engine.checkpoint import name_of
from verigrad.engine.config import Config, ConfigError
from verigrad.engine.settings import Verb

Tree = dict[str, Any]
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
LABEL = re.compile(rf"(\d+)_{NAME.pattern}")
MIX_PATH = re.compile(r"data\.mix\.[^.]+\.path")
PLACEHOLDER = re.compile(r"\{([A-Za-z][A-Za-z0-9_-]*)\}")
SOURCES: Mapping[str, Mapping[str, frozenset[str]]] = {
    "policy": {"model": frozenset({"model", "options"})},
    "data": {
        "path": frozenset(
            {"path", "split", "options", "columns", "eval_path", "eval_split", "evals", "mix", "weight"}
        )
    },
}
"""Section -> the setting that names what is read, and all that describe it: a stage takes them together."""

ROWS_OF: Mapping[str, str] = {"sample": "samples.jsonl", "label": "labels.jsonl"}
"""Command whose result is rows -> the file of them, in its folder."""
NO_POLICY = {*ROWS_OF, "reward"}  # commands whose result the next stage does not start from


@dataclass(frozen=True, slots=True)
class Stage:
    """One command of the recipe."""

    number: int  # from 1
    name: str
    cfg: Config

    @property
    def label(self) -> str:
        """The name of its folder."""
        return f"{self.number}_{self.name}"

    @property
    def result(self) -> str:
        """The folder it leaves behind: its last checkpoint, or where samples.jsonl is."""
        folder = self.cfg.run.folder
        if self.cfg.verb in ROWS_OF:
            return folder
        return f"{folder}/checkpoints/{name_of(self.cfg.train.num_steps)}"


@dataclass(frozen=True, slots=True)
class StagedRecipe:
    """Stages to run in order, each in a folder of its own below `folder`."""

    name: str
    folder: str
    stages: Sequence[Stage]


def load(recipe: str, overrides: Sequence[str] = ()) -> StagedRecipe:
    """Read a recipe of stages and check every one of them; raises ConfigError with one line."""
    path = config.find_recipe(recipe)
    shared = config.read_tree(path)
    try:
        tables = _tables(shared.pop("stage"))
        for tree in (shared, *tables):
            _require_sections(tree)
        for_all, for_one = _sort_overrides(shared, [table["name"] for table in tables], overrides)
        _require_readers(shared, tables, for_all)
    except ConfigError as error:
        raise ConfigError(f"{path.name}: {error}") from None
    folder = _folder(shared, path)
    stages: list[Stage] = []
    for number, table in enumerate(tables, 1):
        where = f"{path.name}: stage {table['name']}"
        try:
            tree = _tree_of(shared, table, for_all, for_one[table["name"]], stages)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        tree["run"] = {**tree.get("run", {}), "folder": f"{folder}/{number}_{table['name']}"}
        cfg = config.build(tree, name=where, verb=table["verb"])
        stages.append(Stage(number, table["name"], cfg))
    return StagedRecipe(path.stem, folder, stages)


def refuse_folder(folder: Path) -> None:
    """Raise ConfigError where a folder is that of a whole recipe of stages, and one run was asked for."""
    if not folder.is_dir() or (folder / "config.toml").is_file():
        return
    runs = [path.parent for path in folder.glob("*/config.toml")]
    found = sorted((int(match[1]), path) for path in runs if (match := LABEL.fullmatch(path.name)))
    if found:
        raise ConfigError(
            f"{folder} is the folder of a recipe of stages, not of one run; name one of them: "
            f"{', '.join(str(path) for _, path in found)}"
        )


def to_toml(recipe: StagedRecipe) -> str:
    """Every stage with every setting filled in; loading it again gives the same stages."""
    tables = []
    for stage in recipe.stages:
        sections = config_verbs.read_part(stage.cfg)
        del sections["run"]["folder"]
        tables.append({"name": stage.name, "verb": stage.cfg.verb, **sections})
    return tomli_w.dumps(config.without_none({"run": {"folder": recipe.folder}, "stage": tables}))


# Reading ---------------------------------------------------------------------------------------------------


def _tables(tables: Any) -> list[Tree]:
    """The [[stage]] tables, each with a good name and a verb."""
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise ConfigError("stage is not a list of tables; write each stage as [[stage]]")
    seen: set[str] = set()
    for number, table in enumerate(tables, 1):
        name, verb = table.get("name"), table.setdefault("verb", "train")
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ConfigError(
                f"stage {number} has the name {name!r}; give it one of letters, digits, _ and -, letter first"
            )
        if name in Config.model_fields or name in seen:
            what = "a section" if name not in seen else "another stage"
            raise ConfigError(f"stage {number} has the name {name!r}, as {what} has; give it another")
        if verb not in config_verbs.VERBS:
            raise ConfigError(f"stage {name}: verb = {verb!r}; expected {', '.join(config_verbs.VERBS)}")
        seen.add(name)
    return tables


def _require_sections(tree: Tree) -> None:
    for name, value in tree.items():
        if name in Config.model_fields and not isinstance(value, dict):
            raise ConfigError(f"{name} = {value!r:.60}: expected a section, a table [{name}]")


def _folder(shared: Tree, path: Path) -> str:
    folder = shared.get("run", {}).pop("folder", "")
    if not isinstance(folder, str):
        raise ConfigError(f"{path.name}: run.folder = {folder!r} is no text; name a folder")
    return folder or f"runs/{path.stem}"


def _sort_overrides(
    shared: Tree, names: Sequence[str], overrides: Sequence[str]
) -> tuple[list[str], dict[str, list[str]]]:
    """Overrides of all stages, and those of each; what names a source goes into the shared sections."""
    for_all: list[str] = []
    for_one: dict[str, list[str]] = {name: [] for name in names}
    for override in overrides:
        key = _key(override)
        first, _, rest = key.partition(".")
        if first in for_one:
            if not rest:
                raise ConfigError(f"override {override!r} is not of the form {first}.section.key=value")
            for_one[first].append(override.strip()[len(first) + 1 :])
        elif "." in key and first not in Config.model_fields:
            is_stage = rest.partition(".")[0] in Config.model_fields
            kinds = (names, Config.model_fields) if is_stage else (Config.model_fields, names)
            near = [one for kind in kinds for one in difflib.get_close_matches(first, kind, n=1)]
            hint = f"did you mean {near[0]}?" if near else f"stages: {', '.join(names)}"
            raise ConfigError(f"override {override!r}: {first} is neither a section nor a stage; {hint}")
        elif _is_source(key) or key == "run.folder":
            config.apply_override(shared, override)
        else:
            config.apply_override({}, override)  # says what is wrong with its form
            for_all.append(override)
    return for_all, for_one


def _is_source(key: str) -> bool:
    section, _, rest = key.partition(".")
    return any(rest.partition(".")[0] in all_of for all_of in SOURCES.get(section, {}).values())


def _require_readers(shared: Tree, tables: Sequence[Tree], for_all: Sequence[str]) -> None:
    """Refuse shared settings and overrides that no stage reads; unknown names the stages refuse."""
    verbs: list[Verb] = [table["verb"] for table in tables]
    known = [section for section in shared if section in Config.model_fields]
    keys = [f"{section}.{key}" for section in known for key in shared[section] if key != "folder"]
    for dotted in [*keys, *map(_key, for_all)]:
        section, key = dotted.split(".")[:2]
        if not any(config_verbs.reads(verb, section, key) for verb in verbs):
            raise ConfigError(f"{section}.{key} has no effect on any stage ({', '.join(verbs)}); remove it")


def _tree_of(
    shared: Tree, table: Tree, for_all: Sequence[str], for_one: Sequence[str], before: Sequence[Stage]
) -> Tree:
    """A stage's whole tree: shared sections, its own, overrides of all, its overrides, earlier results."""
    verb: Verb = table["verb"]
    own = {key: copy.deepcopy(value) for key, value in table.items() if key not in ("name", "verb")}
    for override in for_one:  # now, to know which sources are its own, and once more to win over those of all
        config.apply_override(own, override)
    if "folder" in own.get("run", {}):
        raise ConfigError("run.folder is that of the recipe, and each stage's is below it; set run.folder")
    chained = next((stage.result for stage in reversed(before) if stage.cfg.verb not in NO_POLICY), None)
    if chained is not None and "model" not in own.get("policy", {}):
        own["policy"] = {**own.get("policy", {}), "model": chained}
    tree = dict(own)
    for section, values in shared.items():
        if section not in Config.model_fields:
            tree.setdefault(section, values)  # for the stage to refuse
        elif section in config_verbs.SECTIONS[verb]:
            there = own.get(section, {})
            tree[section] = {**_inherited(verb, section, values, there), **there}
    for override in for_all:
        section, key = _key(override).split(".")[:2]
        if config_verbs.reads(verb, section, key):
            config.apply_override(tree, override)
    for override in for_one:
        config.apply_override(tree, override)
    return {section: _filled(value, section, before) for section, value in tree.items()}


def _key(override: str) -> str:
    return override.partition("=")[0].strip()


def _inherited(verb: Verb, section: str, values: Tree, own: Tree) -> Tree:
    """What a stage takes of a shared section: what its command reads, and no half of another source."""
    taken = {
        key: copy.deepcopy(value) for key, value in values.items() if config_verbs.reads(verb, section, key)
    }
    for names_it, all_of in SOURCES.get(section, {}).items():
        if names_it in own:
            taken = {key: value for key, value in taken.items() if key not in all_of}
    return taken


def _filled(value: Any, where: str, before: Sequence[Stage]) -> Any:
    """The value with `{name}` put for the result of an earlier stage, in every text within."""
    if isinstance(value, dict):
        return {key: _filled(inner, f"{where}.{key}", before) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, where, before) for inner in value]
    if not isinstance(value, str):
        return value
    results = {stage.name: stage.result for stage in before}
    if where in ("data.path", "data.eval_path", "policy.model") or MIX_PATH.fullmatch(where):
        for name in PLACEHOLDER.findall(value):
            if name not in results:
                near = difflib.get_close_matches(name, results, n=1)
                earlier = f"earlier ones: {', '.join(results) or 'none'}"
                hint = f"did you mean {{{near[0]}}}?" if near else earlier
                raise ConfigError(f"{where} = {value!r}: no earlier stage is called {name}; {hint}")
    return PLACEHOLDER.sub(lambda match: results.get(match[1], match[0]), value)


# What can be seen before the first stage starts ------------------------------------------------------------


def missing_files(recipe: StagedRecipe) -> Iterator[str]:
    """A sentence for each local file or folder that a stage reads, no stage makes, and is not there."""
    for stage in recipe.stages:
        data, model = stage.cfg.data, stage.cfg.policy.model
        mixed = [(f"data.mix.{name}.path", one.path) for name, one in data.mix.items()]
        for name, path in (("data.path", data.path), ("data.eval_path", data.eval_path), *mixed):
            is_file = path.endswith((".jsonl", ".parquet", ".csv"))
            if is_file and not _made(path, recipe) and not Path(path).expanduser().is_file():
                yield f"stage {stage.name}: {name} = {path!r}: no such file (looked from {Path.cwd()})"
        is_folder = model.startswith((".", "/", "~")) and ":" not in model
        if is_folder and not _made(model, recipe) and not Path(model).expanduser().is_dir():
            yield f"stage {stage.name}: policy.model = {model!r}: no such folder (looked from {Path.cwd()})"


def _made(path: str, recipe: StagedRecipe) -> bool:
    return any(path.startswith(f"{stage.cfg.run.folder}/") for stage in recipe.stages)
