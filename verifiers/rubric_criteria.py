"""A rubric as users write it -> criteria with weights, and the reward that met and unmet ones add up to."""

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verigrad.verifiers.options import shown

MAX_CRITERIA = 50
EXAMPLE = '[{criterion = "The answer names its source.", weight = 2.0}, ...]'


@dataclass(frozen=True, slots=True)
class Criterion:
    """One criterion; a negative weight is a penalty for meeting it."""

    text: str
    weight: float = 1.0


def read(value: Any, *, where: str) -> tuple[Criterion, ...]:
    """Criteria from a list of texts or of {criterion, weight}; ValueError says what is wrong with it."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not 0 < len(value) <= MAX_CRITERIA:
        raise ValueError(
            f"{where} = {shown(value)}; expected a list of 1 to {MAX_CRITERIA} criteria: {EXAMPLE}"
        )
    found = tuple(_one(each, f"{where}[{number}]") for number, each in enumerate(value))
    if not any(each.weight > 0 for each in found):
        raise ValueError(f"{where} has no criterion with a weight above 0, so nothing could be earned")
    if len({each.text for each in found}) != len(found):
        raise ValueError(f"{where} has the same criterion twice; give it once, with both weights added")
    return found


def _one(each: Any, where: str) -> Criterion:
    given: Mapping[str, Any] = {"criterion": each} if isinstance(each, str) else each
    if not isinstance(given, Mapping) or not isinstance(given.get("criterion"), str):
        raise ValueError(f"{where} = {shown(each)}; expected {{criterion, weight}}")
    if unknown := sorted(set(given) - {"criterion", "weight"}):
        raise ValueError(f"{where} has {shown(unknown[0])}; expected {{criterion, weight}} alone")
    weight = given.get("weight", 1.0)
    plain = isinstance(weight, int | float) and not isinstance(weight, bool) and math.isfinite(weight)
    if not plain or not weight or not given["criterion"].strip():
        raise ValueError(f"{where} = {shown(each)}; expected a criterion and a weight that is not 0")
    return Criterion(given["criterion"].strip(), float(weight))


def from_file(path: Path) -> tuple[Criterion, ...]:
    """The criteria of a TOML file: tables [[criteria]] with criterion and weight."""
    try:
        tree = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"the rubric {path} cannot be read as TOML: {error}") from error
    return read(tree.get("criteria"), where=f"{path.name}: criteria")


def reward_of(criteria: Sequence[Criterion], met: Sequence[bool]) -> float:
    """Weights of the met criteria over all that can be earned, from 0 to 1."""
    earned = math.fsum(each.weight for each, yes in zip(criteria, met, strict=True) if yes)
    return min(max(earned / math.fsum(each.weight for each in criteria if each.weight > 0), 0.0), 1.0)
