"""A row's columns, ours or IFEval's -> the constraints it sets, each parameter checked."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verigrad.verifiers.instruction_checks import KINDS
from verigrad.verifiers.options import shown

MAX_CONSTRAINTS = 50
ANSWERS = ["My answer is yes.", "My answer is no.", "My answer is maybe."]
# IFEval's instruction -> our kind, its parameters' names, and what it leaves unsaid.
IFEVAL: dict[str, tuple[str, dict[str, str], dict[str, Any]]] = {
    "keywords:existence": ("keywords", {"keywords": "words"}, {}),
    "keywords:frequency": (
        "keyword_frequency",
        {"keyword": "word", "frequency": "n", "relation": "relation"},
        {},
    ),
    "keywords:forbidden_words": ("forbidden_words", {"forbidden_words": "words"}, {}),
    "keywords:letter_frequency": (
        "letter_frequency",
        {"letter": "letter", "let_frequency": "n", "let_relation": "relation"},
        {},
    ),
    "language:response_language": ("language", {"language": "language"}, {}),
    "length_constraints:number_sentences": ("sentences", {"num_sentences": "n", "relation": "relation"}, {}),
    "length_constraints:number_paragraphs": ("paragraphs", {"num_paragraphs": "n"}, {"separator": "***"}),
    "length_constraints:number_words": ("words", {"num_words": "n", "relation": "relation"}, {}),
    "length_constraints:nth_paragraph_first_word": (
        "paragraph_first_word",
        {"num_paragraphs": "n", "nth_paragraph": "paragraph", "first_word": "word"},
        {},
    ),
    "detectable_content:number_placeholders": ("placeholders", {"num_placeholders": "n"}, {}),
    "detectable_content:postscript": ("postscript", {"postscript_marker": "marker"}, {}),
    "detectable_format:number_bullet_lists": ("bullets", {"num_bullets": "n"}, {}),
    "detectable_format:constrained_response": ("choice", {}, {"options": ANSWERS}),
    "detectable_format:number_highlighted_sections": ("highlights", {"num_highlights": "n"}, {}),
    "detectable_format:multiple_sections": (
        "sections",
        {"section_spliter": "marker", "num_sections": "n"},
        {},
    ),
    "detectable_format:json_format": ("json", {}, {}),
    "detectable_format:title": ("title", {}, {}),
    "combination:two_responses": ("two_responses", {}, {}),
    "combination:repeat_prompt": ("repeat_prompt", {"prompt_to_repeat": "prompt"}, {}),
    "startend:end_checker": ("end_phrase", {"end_phrase": "phrase"}, {}),
    "startend:quotation": ("quoted", {}, {}),
    "change_case:capital_word_frequency": (
        "capital_words",
        {"capital_frequency": "n", "capital_relation": "relation"},
        {},
    ),
    "change_case:english_capital": ("uppercase", {}, {"language": "en"}),
    "change_case:english_lowercase": ("lowercase", {}, {"language": "en"}),
    "punctuation:no_comma": ("no_commas", {}, {}),
}


@dataclass(frozen=True, slots=True)
class Constraint:
    """One constraint of a row, with every parameter filled in."""

    name: str  # as the row has it
    kind: str
    given: Mapping[str, Any]


def constraints_of(
    constraints: Any, instruction_id_list: Any, kwargs: Any, prompt: str
) -> list[tuple[str, Constraint]]:
    """The row's constraints, each under a name of its own.

    Raises ValueError for a row without constraints, an unknown kind, or parameters that do not fit.
    """
    if (constraints is None) == (instruction_id_list is None):
        raise ValueError(
            "instruction_following: a row needs the column constraints = [{'kind': ...}, ...], or IFEval's "
            "instruction_id_list and kwargs, and not both"
        )
    if constraints is None:
        found = _from_ifeval(instruction_id_list, kwargs, prompt)
    else:
        found = [_ours(one, prompt) for one in _listed(constraints, "constraints")]
    seen: dict[str, int] = {}
    named = []
    for one in found:
        seen[one.name] = seen.get(one.name, 0) + 1
        named.append((one.name if seen[one.name] == 1 else f"{one.name} {seen[one.name]}", one))
    return named


def _listed(value: Any, column: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple) or not 0 < len(value) <= MAX_CONSTRAINTS:
        raise ValueError(
            f"instruction_following: {column} = {shown(value)}; expected a list of 1 to {MAX_CONSTRAINTS}"
        )
    return value


def _ours(one: Any, prompt: str) -> Constraint:
    if not isinstance(one, Mapping) or not isinstance(one.get("kind"), str):
        raise ValueError(
            f"instruction_following: {shown(one)}; expected an object with 'kind' and its parameters"
        )
    given = {name: value for name, value in one.items() if name != "kind"}
    return checked(one["kind"], one["kind"], given, prompt)


def _from_ifeval(ids: Any, kwargs: Any, prompt: str) -> list[Constraint]:
    ids = _listed(ids, "instruction_id_list")
    kwargs = [{}] * len(ids) if kwargs is None else _listed(kwargs, "kwargs")
    if len(kwargs) != len(ids):
        raise ValueError(
            f"instruction_following: {len(ids)} instructions and {len(kwargs)} kwargs; expected as many"
        )
    found = []
    for name, theirs in zip(ids, kwargs, strict=True):
        if not isinstance(name, str) or name not in IFEVAL:
            raise ValueError(f"instruction_following: {_unknown(name, IFEVAL, 'instruction')}")
        if not isinstance(theirs, Mapping | None):
            raise ValueError(f"instruction_following: kwargs of {name} = {shown(theirs)}; expected an object")
        kind, renamed, given = IFEVAL[name]
        # The hub's table fills every other column with null.
        theirs = {key: value for key, value in (theirs or {}).items() if value is not None}
        if odd := sorted(theirs.keys() - renamed.keys()):
            raise ValueError(
                f"instruction_following: {name} has no parameter {odd[0]!r}; it has {sorted(renamed)}"
            )
        found.append(
            checked(name, kind, given | {renamed[key]: value for key, value in theirs.items()}, prompt)
        )
    return found


def checked(name: str, kind: str, given: Mapping[str, Any], prompt: str) -> Constraint:
    """The constraint with its defaults; ValueError for an unknown kind or a parameter that does not fit."""
    if kind not in KINDS:
        raise ValueError(f"instruction_following: {_unknown(kind, KINDS, 'kind')}")
    spec = KINDS[kind]
    known = [*spec.needs, *spec.takes]
    filled = {key: default for key, (_, default) in spec.takes.items()}
    for key, value in given.items():
        if key not in known:
            raise ValueError(
                f"instruction_following: {name} has no parameter {key!r}; it has {known or 'none'}"
            )
        rule = spec.needs[key] if key in spec.needs else spec.takes[key][0]
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # data sets with missing numbers come with floats
        if value is None and key in spec.takes:
            continue
        if expected := rule(value):
            raise ValueError(f"instruction_following: {name}: {key} = {shown(value)}; expected {expected}")
        filled[key] = value
    if missing := [key for key in spec.needs if key not in filled]:
        raise ValueError(f"instruction_following: {name} lacks {missing[0]!r}; it needs {[*spec.needs]}")
    if kind == "repeat_prompt" and filled["prompt"] is None:
        if not prompt.strip():
            raise ValueError(f"instruction_following: {name}: the problem has no prompt to repeat")
        filled["prompt"] = prompt
    return Constraint(name, kind, filled)


def _unknown(name: Any, table: Mapping[str, Any], what: str) -> str:
    near = difflib.get_close_matches(str(name), table, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(table)}"
    return f"no {what} {shown(name)}; {hint}"
