"""A reward model's folder -> what it is and how it reads an answer (reward.json), and whether it may be used.

`verigrad reward` writes both files beside the weights. A folder without reward.json, such as one of the hub,
is a reward model of whole answers with nothing added to its prompts. Needs no torch.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from verigrad.engine import checkpoint, stage_recipe
from verigrad.engine.config import ConfigError
from verigrad.engine.settings import PromptsConfig

CARD = "reward.json"
AUDIT = "audit.json"
Kind = Literal["pairs", "steps", "ensemble"]
Aggregate = Literal["mean", "mean_minus_std", "min"]
Solution = Literal["min", "product", "last", "mean"]


@dataclass(frozen=True, slots=True)
class Card:
    """What reward.json says."""

    kind: Kind = "pairs"
    prompts: Mapping[str, Any] = field(default_factory=dict)  # [prompts], as the model was trained with
    max_length: int = 0  # longest prompt and answer, in tokens; 0 is what the model's positions allow
    eos_id: int | None = None  # the token that ends an answer; None is the tokenizer's
    separator: str = "\n"  # steps: ends a step
    solution: Solution = "min"  # steps: how an answer's score is made of its steps'
    members: int = 1  # ensemble: folders member_1, member_2, ...
    aggregate: Aggregate = "mean_minus_std"
    std_coef: float = 1.0
    mean: float | None = None  # of the rewards of held-out answers; None where nothing was held out
    std: float | None = None

    def save(self, folder: Path) -> None:
        """Write reward.json."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CARD).write_text(json.dumps(asdict(self), indent=1) + "\n")


def read(folder: Path) -> Card:
    """The card of a folder; ConfigError for one that cannot be read."""
    path = folder / CARD
    if not path.is_file():
        return Card()
    try:
        found = dict(json.loads(path.read_text()))
        card = Card(**found)
        PromptsConfig(**card.prompts)
    except (OSError, ValueError, TypeError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{path} is no card of a reward model ({reason}); train it again") from error
    if card.kind not in ("pairs", "steps", "ensemble"):
        raise ConfigError(f"{path}: kind is {card.kind!r}, expected pairs, steps or ensemble")
    return card


def folder_of(reference: str | Path) -> Path:
    """A model's folder: itself, or of a run folder the newest whole checkpoint. ConfigError without one."""
    folder = Path(reference).expanduser()
    if (folder / "config.json").is_file() or (folder / CARD).is_file():
        return folder
    checkpoints = folder / "checkpoints"
    if checkpoints.is_dir():
        for _step, path in checkpoint.newest_first(checkpoints):
            if checkpoint.damage(path) is None:
                return path
        raise ConfigError(f"{folder} holds no whole checkpoint yet; let `verigrad reward` finish there")
    stage_recipe.refuse_folder(folder)
    raise ConfigError(
        f"{folder}: no reward model (looked from {Path.cwd()}): expected a run folder of `verigrad reward` "
        "or a Hugging Face folder; correct the path"
    )


def audit_of(folder: Path) -> Mapping[str, Any]:
    """What audit.json says; empty where there is none."""
    try:
        found: dict[str, Any] = json.loads((folder / AUDIT).read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder / AUDIT} cannot be read ({error}); train the model again") from error
    return found


def require_unbiased(folder: Path, *, allow_biased: bool) -> None:
    """Refuse a model that its audit refused; ConfigError with the audit's own reason."""
    audit = audit_of(folder)
    if audit.get("refused") and not allow_biased:
        raise ConfigError(
            f"{folder} was refused by its audit: {audit.get('reason', 'no reason given')}. Train it again, "
            "for instance with reward.length_control = true, or use it all the same with allow_biased = true"
        )
