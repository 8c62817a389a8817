"""A suite's file or name -> sets that measure side effects of training, and how to read each. No torch.

A suite is a TOML file: `says`, and tables [sets.NAME] that are those of [data.evals.NAME] with `better`,
`pairs`, `wins` and `says` besides; [lm_eval] names tasks of lm-evaluation-harness. docs/side-effects.md.
"""

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from verigrad.engine import config
from verigrad.engine.settings import EVAL_NAME, ConfigError, EvalSet

SUITES = Path(__file__).parent / "suites"
PAIR = "pair"  # column that tells which rows of a probe belong together


class SuiteSet(EvalSet):
    """One set of a suite: problems and who judges them, and what a change of its score means."""

    says: str = ""
    """What it measures, in a few words."""
    better: Literal["higher", "lower", "neither"] = "higher"
    """Which way its score should go; neither is only told."""
    pairs: str = ""
    """Column whose value `plain` marks a question as it is, any other value a disturbed version."""
    wins: bool = False
    """Tell how often the later model's answer beats the first's, also at equal length."""


class LmEval(BaseModel):
    """Tasks of lm-evaluation-harness."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tasks: list[str] = Field(min_length=1)
    limit: int | None = Field(default=None, ge=1)
    include_path: str = ""
    num_fewshot: int | None = Field(default=None, ge=0)


class Suite(BaseModel):
    """What is measured before and after."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    says: str = ""
    sets: dict[str, SuiteSet] = {}
    lm_eval: LmEval | None = None

    def evals(self) -> dict[str, dict[str, Any]]:
        """The sets as tables of [data.evals]."""
        own = set(SuiteSet.model_fields) - set(EvalSet.model_fields)
        return {name: one.model_dump(exclude_defaults=True, exclude=own) for name, one in self.sets.items()}


def shipped() -> list[str]:
    """Names of the suites that come with the package."""
    return sorted(path.stem for path in SUITES.glob("*.toml"))


def load(reference: str) -> Suite:
    """Read a suite; paths of data in it are taken from where its file stands, if they are there.

    Raises ConfigError in one line for a file that is not there or not a suite.
    """
    path = Path(reference).expanduser()
    if path.suffix != ".toml":
        if reference not in shipped():
            near = difflib.get_close_matches(reference, shipped(), n=1)
            hint = f"did you mean {near[0]}?" if near else f"shipped suites: {', '.join(shipped())}"
            raise ConfigError(f"--suite {reference}: neither a .toml file nor a shipped suite; {hint}")
        path = SUITES / f"{reference}.toml"
    if not path.is_file():
        raise ConfigError(f"--suite {reference}: no such file (looked from {Path.cwd()}); correct the path")
    try:
        suite = Suite.model_validate(tomllib.loads(path.read_text()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name}: not a TOML file: {error}") from None
    except ValidationError as error:
        raise ConfigError(f"{path.name}: " + "; ".join(explain(one) for one in error.errors())) from None
    if not suite.sets and suite.lm_eval is None:
        raise ConfigError(
            f"{path.name}: it has neither sets nor lm_eval; add a table [sets.NAME] with a path"
        )
    for name in suite.sets:
        if not EVAL_NAME.fullmatch(name):
            raise ConfigError(f"{path.name}: the name {name!r} may hold only letters, digits, _ and -")
    return suite.model_copy(update={"sets": {name: beside(one, path) for name, one in suite.sets.items()}})


def beside(one: SuiteSet, suite: Path) -> SuiteSet:
    """The set with its data file's path as seen from here, where the file stands beside its suite."""
    near = suite.parent / one.path
    return one.model_copy(update={"path": str(near)}) if near.is_file() else one


def explain(error: Mapping[str, Any]) -> str:
    """One pydantic error as a sentence that names the fix."""
    where = ".".join(str(part) for part in error["loc"])
    known = SuiteSet.model_fields if error["loc"][0] == "sets" else Suite.model_fields
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        return f"{where} is nothing a suite has; {hint}"
    return config.explain(error)
