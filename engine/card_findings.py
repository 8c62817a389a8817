"""What commands left, and side effects -> the model card's failures found and residual risks."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from verigrad.engine.card_parts import first_and_last
from verigrad.engine.card_record import Json, Record
from verigrad.engine.card_text import table
from verigrad.verifiers.identity import parts_of

BY_A_MODEL = ("reward_model", "process_reward", "rubric", "judge_score")
"""Verifiers whose judgement is a model's."""
MEANT = "may not be what was meant"


def effect_lines(found: Json) -> Iterator[str]:
    """The side effects that were measured."""
    if not found:
        yield "Not measured. `verigrad eval BEFORE AFTER --suite general -o FOLDER` measures them.\n"
        return
    rows = []
    for one in found.get("side_effects", []):
        paired = one["paired"]
        change = f"{paired['gain']:+.3f} [{paired['low']:+.3f}, {paired['high']:+.3f}]"
        scores = (f"{one['before'][0]:.3f}", f"{one['after'][0]:.3f}", change)
        rows.append((one["name"], one["says"], *scores, str(one.get("num_problems", "?")), one["reading"]))
    headings = ("measure", "what it is", "before", "after", "difference, 95%", "problems", "reading")
    yield table(headings, rows)
    if how := found.get("how"):
        yield f"{how[:1].upper()}{how[1:]}.\n"
    for name, rate in found.get("wins", {}).items():
        yield (
            f"Win rate, {name}: {rate['rate']:.1%} [{rate['low']:.1%}, {rate['high']:.1%}]; at equal length "
            f"{rate['controlled']:.1%} [{rate['controlled_low']:.1%}, {rate['controlled_high']:.1%}].\n"
        )


def failures(records: Sequence[Record], found: Json) -> Iterator[str]:
    """What the runs and their checks recorded as wrong."""
    for one in records:
        where = f"{one.folder.name}: "
        for probe in one.audit.get("results", []):
            if probe.get("status") in ("FAILS", "warns"):
                worst = f", e.g. {str(probe['worst'])[:160]}" if probe.get("worst") else ""
                yield (
                    f"{where}the verifier failed the audit's probe {probe['name']!r} in {probe['num_bad']} "
                    f"of {probe['num']} cases{worst}"
                )
        if one.verb == "reward":
            yield from (f"{where}{line}" for line in of_reward_model(one))
        yield from (f"{where}{line}" for line in undecided(one))
        skipped = sum(row.get("skipped_updates") or 0 for row in one.metrics)
        if skipped:
            yield f"{where}{skipped:.0f} optimizer steps were skipped for a non-finite loss or gradient"
        for path in sorted((one.folder / "tripped").glob("step_*.parquet")):
            step = path.stem.removeprefix("step_").lstrip("0")
            yield f"{where}a sign of reward hacking tripped at step {step}; its rollouts are in {path.name}"
        for name, (_, last) in first_and_last(one.evals).items():
            if (cut := last.get("truncated_frac") or 0) > 0.05:
                yield f"{where}{cut:.1%} of held-out answers were cut off by the token limit, on {name}"
    for effect in found.get("side_effects", []):
        if effect["reading"] == "WORSE":
            yield f"side effect: {effect['name']} got worse by {abs(effect['paired']['gain']):.3f}"


def undecided(one: Record) -> Iterator[str]:
    """Checks or judgements that decided nothing: of how many steps, and why."""
    shares = [row["undecided_frac"] for row in one.metrics if row.get("undecided_frac")]
    if not shares:
        return
    what, steps, of = ("checks", "steps", "attempts")
    if one.verb == "label":
        what, steps, of = ("judgements", "chunks of rows", "judgements")
    reasons = one.reasons().most_common(1)
    why = ""
    for reason, num in reasons:
        why = f"; the most common reason, {num} time{'s' * (num > 1)}: {reason[:200]}"
    yield (
        f"{what} failed in {len(shares)} of {len(one.metrics)} {steps}, at most {max(shares):.1%} of the "
        f"{of} of one; they were left out{why}"
    )


def of_reward_model(one: Record) -> Iterator[str]:
    """What the audit of a reward model's newest checkpoint found."""
    audit = one.audit_of_reward_model()
    if audit.get("refused"):
        yield f"the reward model was refused by its audit: {audit.get('reason', 'no reason given')}"
    yield from audit.get("findings", [])


# Risks ---------------------------------------------------------------------------------------------------


def risks(records: Sequence[Record], found: Json) -> Iterator[str]:
    """What follows from how it was made, and what was not looked at."""
    for one in records:
        yield from (f"{one.folder.name}: {line}" for line in by_a_model(one, records))
        if one.verb == "train":
            yield from (f"{one.folder.name}: {line}" for line in of_training(one))
    for one in records:
        if one.verb in ("train", "sft", "prefer") and not one.evals:
            yield f"{one.folder.name}: nothing was held out"
        for name, (_, last) in first_and_last(one.evals).items():
            if (num := last.get("num_problems") or 0) and num < 100:
                yield f"{one.folder.name}: the results on {name} rest on {num} problems; see the intervals"
    if not found:
        yield "side effects (refusals, sycophancy, other abilities) were not measured"
    yield "whether held-out problems occur in the starting model's own training data is unknown"
    yield "one run is one seed; other seeds give other models"


def by_a_model(one: Record, records: Sequence[Record]) -> Iterator[str]:
    """Where a model's judgement stood in for what was meant."""
    if one.verb in ("train", "sample"):
        name, options = str(one.get("verifier", "name")), one.get("verifier", "options", {})
        if learned := ", ".join(dict.fromkeys(judges_among(name, options))):
            if one.verb == "sample":
                yield f"answers were picked by a model ({learned}); they teach what it likes, which {MEANT}"
            else:
                yield (
                    f"the reward is learned or judged by a model ({learned}); what it likes is what was "
                    f"trained, which {MEANT}"
                )
                if not one.get("eval", "verifier"):
                    yield "the same model judged held-out answers, so a gamed reward looks like a gain"
    if feedback := labelled(one):
        yield f"{feedback}; they teach what it likes, which {MEANT}"
    on_the_card = {record.folder.resolve() for record in records}
    for source in sources(one):
        if source.folder.resolve() in on_the_card:
            continue
        for line in by_a_model(source, [*records, source]):
            yield f"its data is of {source.folder}, where {line}"


def judges_among(name: str, options: Mapping[str, Any]) -> Iterator[str]:
    """The verifier itself, or parts of a combination, as far as their judgement is a model's."""
    if name in BY_A_MODEL:
        yield name
    for part in parts_of(name, options):
        yield from judges_among(*part)


def labelled(one: Record) -> str:
    """What a judge did to the rows of a `verigrad label`; empty for any other command."""
    if one.verb != "label":
        return ""
    did = "rewrote" if one.get("label", "task") == "revise" else "judged"
    return f"a model ({one.get('judge', 'model')}) {did} the answers"


def sources(one: Record) -> Iterator[Record]:
    """The runs whose labels or samples the command read, as far as their folders are there."""
    data = one.recipe.get("data", {})
    paths = [data.get("path"), *(mixed.get("path") for mixed in data.get("mix", {}).values())]
    for path in dict.fromkeys(Path(str(path)).expanduser() for path in paths if path):
        if path.name in ("labels.jsonl", "samples.jsonl") and (path.parent / "config.toml").is_file():
            yield Record.read(path.parent)


def of_training(one: Record) -> Iterator[str]:
    """What nobody looked at while a run was rewarded."""
    if not one.get("monitor", "verifier"):
        yield "no second reward watched the first, so a gamed reward may not show"
    if one.get("verifier", "audit") == "off":
        yield "the verifier was not audited before training"
    if one.get("sandbox", "backend") == "local_process":
        yield "programs ran without a sandbox"
