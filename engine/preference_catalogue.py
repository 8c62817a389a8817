"""The losses of [prefer] by name, with the numbers each starts from, what it has no use for, and why not.

Imports no torch: `verigrad algorithms` and the check of a recipe read it. The functions of these names are in
preference_loss.py; docs/preference-losses.md explains each.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from verigrad.engine.settings import Config, PreferConfig


@dataclass(frozen=True, slots=True)
class PreferencePart:
    """One value of prefer.loss."""

    says: str
    source: str
    settings: Mapping[str, float] = field(default_factory=dict)  # setting of [prefer] -> where it is empty
    reference: bool = True  # compares with log-probabilities of the starting model
    paired: bool = True  # learns from pairs; else from single answers called good or bad
    length_norm: bool = False  # prefer.length_norm means something


NLL_OFF: Mapping[str, float] = {"nll_coef": 0.0}

PREFERENCES: Mapping[str, PreferencePart] = {
    "dpo": PreferencePart(
        "logistic loss of the pair's difference in log-ratio to the reference",
        "2305.18290",
        {"beta": 0.1, "label_smoothing": 0.0, **NLL_OFF},
        length_norm=True,
    ),
    "dpo_robust": PreferencePart(
        "dpo whose mean is as without the labels that are the wrong way round",
        "2403.00409",
        {"beta": 0.1, "label_smoothing": 0.1, **NLL_OFF},
    ),
    "dpo_hinge": PreferencePart("hinge loss of dpo's difference", "2309.06657", {"beta": 0.05, **NLL_OFF}),
    "ipo": PreferencePart(
        "square of what dpo's difference lacks of 1 / (2 beta): certain labels do not drive it on",
        "2310.12036",
        {"beta": 0.1, **NLL_OFF},
        length_norm=True,
    ),
    "kto": PreferencePart(
        "single answers, good or bad, against the mean log-ratio of answers to other prompts",
        "2402.01306",
        {"beta": 0.1, "good_weight": 1.0, "bad_weight": 1.0},
        paired=False,
    ),
    "orpo": PreferencePart(
        "likelihood of the chosen answer, and its odds against the rejected one's, no reference",
        "2403.07691",
        {"odds_coef": 0.1, "nll_coef": 1.0},
        reference=False,
    ),
    "simpo": PreferencePart(
        "logistic loss of the difference in mean log-probability, minus a margin, no reference",
        "2405.14734",
        {"beta": 2.5, "margin": 0.55 * 2.5, **NLL_OFF},
        reference=False,
    ),
    "cpo": PreferencePart(
        "dpo without a reference, and the likelihood of the chosen answer",
        "2401.08417",
        {"beta": 0.1, "nll_coef": 1.0},
        reference=False,
    ),
}

LENGTH_NORM_BETA = 5.0
"""dpo's beta of mean log-ratios, which are far smaller than sums (Tulu 3, arXiv 2411.15124)."""
MARGIN_PER_BETA = 0.55
"""simpo's margin over its beta (arXiv 2405.14734, section 4)."""

_NUMBERS = sorted({name for part in PREFERENCES.values() for name in part.settings})


def numbers(p: PreferConfig) -> dict[str, float]:
    """Every number of the recipe's loss, those it leaves open filled in."""
    part = PREFERENCES[p.loss]
    filled = dict(part.settings)
    if p.loss == "dpo" and p.length_norm:
        filled["beta"] = LENGTH_NORM_BETA
    if p.beta is not None and "margin" in filled:
        filled["margin"] = MARGIN_PER_BETA * p.beta
    return {name: value if getattr(p, name) is None else getattr(p, name) for name, value in filled.items()}


def resolve(p: PreferConfig) -> PreferConfig:
    """Every number the recipe left open, written out; those of other losses stay empty."""
    return p.model_copy(update=numbers(p))


def contradictions(c: Config) -> Iterator[str]:
    """What cannot be in [prefer], and what would have no effect; one sentence each."""
    if c.verb != "prefer":
        return
    p, part = c.prefer, PREFERENCES[c.prefer.loss]
    for name in _NUMBERS:
        if name not in part.settings and getattr(p, name) is not None:
            takers = ", ".join(loss for loss, other in PREFERENCES.items() if name in other.settings)
            yield f"prefer.{name} has no effect with prefer.loss = {p.loss!r}; remove it (it is of {takers})"
    if p.length_norm and not part.length_norm:
        takers = " and ".join(loss for loss, other in PREFERENCES.items() if other.length_norm)
        yield f"prefer.length_norm has no effect with prefer.loss = {p.loss!r}, only with {takers}; remove it"
    if p.loss == "dpo_robust" and p.label_smoothing == 0:
        yield "prefer.label_smoothing = 0 makes dpo_robust plain dpo; raise it, or set prefer.loss = 'dpo'"
    if part.paired and p.max_length <= c.policy.tokens_per_batch < 2 * p.max_length:
        yield (
            f"policy.tokens_per_batch = {c.policy.tokens_per_batch} cannot hold one pair of two answers of "
            f"up to prefer.max_length = {p.max_length}; raise it or lower that"
        )
