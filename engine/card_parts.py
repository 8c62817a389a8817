"""What one command left -> its parts of the model card: data, reward, constitution, settings, results."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from verigrad.engine import config, config_verbs
from verigrad.engine.card_record import Json, Record
from verigrad.engine.card_text import bounded, quoted, table
from verigrad.engine.label_settings import CONSTITUTION, file_of

TOLD = {("algorithm", "name"), ("optim", "lr"), ("train", "num_steps"), ("policy", "model")}
"""Settings that name what was done, told even where they are the defaults."""
ELSEWHERE = {("data", "path"), ("data", "mix"), ("run", "folder"), ("verifier", "options")}
"""Settings that another part of the card tells."""
REWARDED = {"train": "What was rewarded", "prefer": "What was preferred"}
NO_SOURCE = "none: its source is no file that was found"
OF_PREFERENCES = (
    "These are about answers that were judged before: whether the policy tells the better from the worse. "
    "What its own answers are worth now they do not say; `verigrad eval` measures that.\n"
)


def part(one: Record, *, level: int) -> Iterator[str]:
    """All parts, under headings of this level."""
    head = "#" * level
    yield f"{head} Data\n"
    yield table(("what", "value"), data_rows(one))
    if rows := list(reward_rows(one)):
        yield f"{head} {REWARDED.get(one.verb, 'Who judged')}\n"
        yield table(("what", "value"), rows)
    if principles := constitution(one):
        yield f"{head} Constitution\n"
        yield principles
    yield f"{head} Settings\n"
    yield table(("setting", "value"), setting_rows(one.recipe))
    yield f"{head} Results\n"
    yield from results(one)


def data_rows(one: Record) -> Iterator[tuple[str, str]]:
    """Where the data came from, and what tells it from other data."""
    yield "path", f"`{one.get('data', 'path')}`"
    for name, mixed in one.recipe.get("data", {}).get("mix", {}).items():
        yield f"mixed in: {name}", f"`{mixed.get('path')}`, weight {mixed.get('weight', 1.0):g}"
    names = {"data": "fingerprint of the rows", "prompts": "of the prompt template", "model": "of the model"}
    for key, says in names.items():
        if key in one.environment:
            yield says, f"`{one.environment[key]}`"
    yield "seed", str(one.environment.get("seed", one.get("train", "seed", "unknown")))


def reward_rows(one: Record) -> Iterator[tuple[str, str]]:
    """Who judged."""
    if one.verb in ("train", "sample"):
        yield "verifier", f"`{one.get('verifier', 'name')}`"
        if options := one.get("verifier", "options", {}):
            yield "its options", f"`{json.dumps(options)}`"
        if "verifier" in one.environment:
            source = one.environment["verifier"]
            yield "hash of its source", NO_SOURCE if source is None else f"`{source}`"
    if one.verb == "train":
        judge = one.get("eval", "verifier") or "the same"
        yield "judge of held-out answers", f"`{judge}`" if judge != "the same" else judge
        second = one.get("monitor", "verifier")
        yield "second reward, not trained on", f"`{second}`" if second else "none"
        if one.environment.get("control"):
            yield "control", "this run was rewarded at random, on purpose"
    if one.verb == "prefer":
        yield "loss", f"`{one.get('prefer', 'loss')}`, beta {one.get('prefer', 'beta', 'of the loss')}"
    if one.verb == "label":
        yield "judge", f"`{one.get('judge', 'model')}` {one.get('judge', 'url')}".strip()
        yield "task", str(one.get("label", "task"))


def constitution(one: Record) -> str:
    """The principles that the judge went by: as the run kept them, or else as their file is now."""
    named = str(one.get("label", "constitution"))
    if one.verb != "label" or not named:
        return ""
    kept = one.folder / CONSTITUTION
    if kept.is_file():
        return quoted(kept.read_text(errors="replace"))
    if (path := file_of(named)).is_file():
        return f"As `{named}` is now; the run kept no copy.\n\n{quoted(path.read_text(errors='replace'))}"
    return f"`{named}` is not there now, and the run kept no copy.\n"


def setting_rows(recipe: Json) -> Iterator[tuple[str, str]]:
    """Settings that are not the defaults, and those that name what was done."""
    for section, values in recipe.items():
        for key, value in values.items():
            told = (section, key) in TOLD or not is_default(recipe, section, key)
            if told and (section, key) not in ELSEWHERE:
                shown = chosen_of_sets(value) if (section, key) == ("data", "evals") else value
                yield f"`{section}.{key}`", f"`{json.dumps(shown, default=str)}`"


def is_default(recipe: Json, section: str, key: str) -> bool:
    """Whether the setting would be the same had nobody written it: the default, or what others imply."""
    field = config.Config.model_fields.get(section)
    fields = getattr(getattr(field, "annotation", None), "model_fields", {})
    if key in fields and config.without_none(as_toml(fields[key].default)) == recipe[section][key]:
        return True
    rest = {name: value for name, value in recipe[section].items() if name != key}
    try:
        built = config.build({**recipe, section: rest}, name="config.toml", verb=config_verbs.verb_of(recipe))
    except config.ConfigError:  # it is needed
        return False
    found = config.without_none(config_verbs.read_part(built))
    return bool(found.get(section, {}).get(key) == recipe[section][key])


def as_toml(value: Any) -> Any:
    """A default as a TOML file gives it back."""
    return list(value) if isinstance(value, tuple) else value


def chosen_of_sets(sets: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Held-out sets without what is as by default."""
    fields = config.NAMED_SETS["evals"].model_fields
    return {
        name: {key: value for key, value in one.items() if key not in fields or value != fields[key].default}
        for name, one in sets.items()
    }


# Results -------------------------------------------------------------------------------------------------


def results(one: Record) -> Iterator[str]:
    """Every held-out set's first and last scores, with 95% intervals; of what trains nothing, counts."""
    if one.verb in ("label", "sample"):
        yield made(one)
        return
    if not one.evals:
        yield "Nothing was held out, so nothing is known of how it does on what it was not trained on.\n"
        return
    rows = []
    for name, (first, last) in first_and_last(one.evals).items():
        for score in ("avg", "accuracy", "margin", "loss"):
            if score in last:
                rows.append((name, score, scored(first, score), scored(last, score), counted(last)))
    yield table(("held-out set", "score", "before", "after", "measured on"), rows)
    if one.verb == "prefer":
        yield OF_PREFERENCES
    if measured := list(of_reward_model(one)):
        yield "The reward model's newest checkpoint, on held-out rows:\n"
        yield table(("measure", "value"), measured)


def made(one: Record) -> str:
    """What came out of a command that trains nothing."""
    if one.verb == "sample":
        return (
            f"Nothing is trained here. Of {one.total('num_sampled')} sampled answers to "
            f"{one.total('num_problems')} prompts, {one.total('num_kept')} were kept, of "
            f"{one.total('num_problems_kept')} prompts.\n"
        )
    text = (
        f"Nothing is trained here. {one.total('num_judgements')} judgements of {one.total('num_rows')} rows "
        f"gave {one.total('num_labels')} labels."
    )
    if both := one.total("num_both_orders"):
        agreed = one.total("num_agreed") / both
        text += f" Asked in both orders, the judge agreed with itself on {agreed:.1%} of the pairs."
    return text + "\n"


def of_reward_model(one: Record) -> Iterator[tuple[str, str]]:
    """Calibration and leaning on length of a reward model, as its audit measured them."""
    audit = one.audit_of_reward_model() if one.verb == "reward" else {}
    names = {
        "ece": "calibration error (ECE)",
        "length_corr": "correlation of reward and length",
        "length_corr_within": "of their differences, among answers to one prompt",
        "length_corr_equal": "the same, at equal preference",
    }
    for key, says in names.items():
        if audit.get(key) is not None:
            yield says, bounded(audit[key], audit.get(f"{key}_low"), audit.get(f"{key}_high"))
    if audit.get("max_length_corr") is not None and "length_corr_within" in audit:
        yield (
            "refused from a correlation of",
            f"{audit['max_length_corr']:g}, where the interval does not hold 0",
        )


def first_and_last(evals: Sequence[Json]) -> dict[str, tuple[Json, Json]]:
    """Each evaluation set's first and last row, by its name; the rows of several sets stand mixed."""
    found: dict[str, tuple[Json, Json]] = {}
    for row in evals:
        name = str(row.get("data"))
        found[name] = (found[name][0] if name in found else row, row)
    return found


def scored(row: Json, score: str) -> str:
    """`0.412 [0.351, 0.473] at step 40`."""
    value, low, high = (row.get(f"{score}{end}") for end in ("", "_low", "_high"))
    return "undefined" if value is None else f"{bounded(value, low, high)} at step {row.get('step')}"


def counted(row: Json) -> str:
    """How many problems or examples a row is about."""
    for key in ("num_problems", "num_pairs", "num_examples", "num_rows"):
        if key in row:
            return f"{row[key]} {key.removeprefix('num_')}"
    return "unknown"
