"""[reward] -> what cannot be, and what would silently have no effect. Needs no torch."""

from collections.abc import Iterator

from verigrad.engine.settings import Config, EvalSet, RewardConfig

OF_PAIRS = (
    "ranking", "margin_column", "center_coef", "length_control", "votes", "members", "split", "aggregate",
    "std_coef", "pairs_per_problem",
)  # fmt: skip
OF_STEPS = ("step_separator", "solution")
OF_ENSEMBLES = ("split", "aggregate", "std_coef")
OF_SAMPLES = ("verifier", "verifier_options", "num_samples", "temperature")


def contradictions(c: Config) -> Iterator[str]:
    """What is wrong with a recipe for `verigrad reward`."""
    settings = c.reward
    chosen = {name for name, field in RewardConfig.model_fields.items() if _differs(settings, name, field)}
    of_other, kind = (OF_PAIRS, "pairs") if settings.kind == "steps" else (OF_STEPS, "steps")
    for name in of_other:
        if name in chosen:
            yield f"reward.{name} is for reward.kind = {kind!r} and has no effect with another; remove it"
    if settings.kind == "pairs":
        for name in OF_ENSEMBLES:
            if settings.members == 1 and name in chosen:
                yield f"reward.{name} has no effect on one model; set reward.members = 3, or remove it"
        if settings.ranking == "plackett_luce" and settings.margin_column:
            yield (
                f"reward.margin_column = {settings.margin_column!r} is for pairs, and reward.ranking = "
                "'plackett_luce' for rankings, which have no margin; remove one of the two"
            )
        if settings.members > 1 and settings.aggregate != "mean_minus_std" and "std_coef" in chosen:
            yield f"reward.std_coef has no effect with reward.aggregate = {settings.aggregate!r}; remove it"
    if settings.kind == "steps" and not settings.step_separator.strip(" "):
        yield "reward.step_separator is empty or blanks, which cut no steps; name what ends one"
    for name, one in c.data.evals.items():
        for key in OF_SAMPLES:
            if _differs(one, key, EvalSet.model_fields[key]):
                what = f"data.evals.{name}.{key}"
                yield f"{what} has no effect on `verigrad reward`, which samples nothing; remove it"


def _differs(section: RewardConfig | EvalSet, name: str, field: object) -> bool:
    default = field.get_default(call_default_factory=True)  # type: ignore[attr-defined]
    return bool(getattr(section, name) != default)
