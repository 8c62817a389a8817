"""A completion that must be JSON -> whether it parses and fits a JSON Schema.

Only the form is judged, never whether what it says is true. References are looked up in the schema itself and
among the published drafts; nothing is fetched.
"""

import hashlib
import json
import math
import re
from collections.abc import Hashable, Iterator
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Any

from verigrad.verifiers.base import Verdict, verifier
from verigrad.verifiers.marked import Unreadable, short
from verigrad.verifiers.options import one_of, shown, with_options

MAX_CHARACTERS = 20_000
MAX_DEPTH = 64
MAX_DIGITS = 100
MAX_EXTRACTED = 500
FENCE = re.compile(r"^[ \t]{0,3}```[ \t]{0,3}(\w{0,20})[ \t]*$", re.MULTILINE)
BRACKET = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)


def warm_up() -> None:
    """Import jsonschema, which takes a moment."""
    _validator("{}")


@verifier(
    "json_schema",
    version="1",
    shaping=True,
    deadline_s=5.0,
    canary={"response": '{"a": 1}', "answer": None, "meta": {"schema": {"required": ["a"]}}},
    warm_up=warm_up,
)
@with_options(extract=one_of("auto", "whole", "fence"))
def json_schema(text: str, schema: Any, extract: str = "auto") -> Verdict:
    """Right if the completion is one JSON value that fits `schema`, an option or a column of the row.

    `whole`: nothing but JSON. `fence`: the only ```json block, with nothing after it. `auto`: the block if
    there is one, else the whole text. The draft is the one that `$schema` names, else 2020-12.
    """
    validator = _validator(_schema_text(schema))
    try:
        value = parsed(_stated(text, extract))
    except Unreadable as error:
        return Verdict.wrong(str(error), outcome="unparseable")
    said = json.dumps(value, sort_keys=True, separators=(",", ":"))
    if len(said) > MAX_EXTRACTED:
        said = "sha256:" + hashlib.sha256(said.encode()).hexdigest()
    wrong = _first_fault(validator, value)
    if wrong:
        return Verdict(0.0, "wrong", {"parses": 1.0, "fits": 0.0}, wrong, extracted=said)
    return Verdict(1.0, "right", {"parses": 1.0, "fits": 1.0}, extracted=said)


def _stated(text: str, extract: str) -> str:
    fences = list(FENCE.finditer(text))
    if extract == "whole" or (extract == "auto" and not fences):
        return text
    if len(fences) != 2 or fences[0][1].lower() != "json" or fences[1][1]:
        raise Unreadable(f"{len(fences)} fence lines; expected one ```json block")
    if after := text[fences[1].end() :].strip():
        raise Unreadable(f"goes on after the block: {short(after)}")
    return text[fences[0].end() : fences[1].start()]


def parsed(text: str) -> Any:
    """The JSON value, or Unreadable; stricter than json.loads in names, numbers, depth and size."""
    text = text.strip()
    if not text or len(text) > MAX_CHARACTERS:
        raise Unreadable(f"{len(text)} characters of JSON; expected 1 to {MAX_CHARACTERS}")
    depth = 0
    for match in BRACKET.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match.group(), 0)
        if depth > MAX_DEPTH:
            raise Unreadable(f"nested more than {MAX_DEPTH} deep")
    try:
        return json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_int=_int, parse_float=_float
        )
    except json.JSONDecodeError as error:
        raise Unreadable(f"is not JSON: {error.msg} at character {error.pos}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise Unreadable("an object names a field twice")
    return made


def _constant(name: str) -> Any:
    raise Unreadable(f"{name} is not JSON")


def _int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise Unreadable(f"a number of {len(digits)} digits")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if len(digits) > MAX_DIGITS or not math.isfinite(value):
        raise Unreadable(f"a number too large or too long: {short(digits)}")
    return value


def _schema_text(schema: Any) -> str:
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise ValueError(f"json_schema: schema is text and not JSON ({error})") from None
    if not isinstance(schema, dict):
        raise ValueError(f"json_schema: schema = {shown(schema)}; expected an object, or its JSON text")
    return json.dumps(schema)


@lru_cache(maxsize=256)
def _validator(schema_text: str) -> Any:
    """A validator for the schema, which is checked against its draft; ValueError where it is none."""
    import jsonschema
    from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]  # no way to fetch more

    schema = json.loads(schema_text)
    drafts = jsonschema.validators.validator_for(schema, default=None)
    if drafts is None and "$schema" in schema:
        raise ValueError(f"json_schema: unknown draft $schema = {shown(schema['$schema'])}")
    draft = drafts or jsonschema.Draft202012Validator
    try:
        draft.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ValueError(f"json_schema: not a schema at {error.json_path}: {short(error.message)}") from None
    # Without $schema, or a reference to "#" would go back to the library's own class for that draft.
    plain = {name: value for name, value in schema.items() if name != "$schema"}
    ours = {"multipleOf": _multiple_of, "divisibleBy": _multiple_of, "uniqueItems": _unique_items}
    ours = {name: check for name, check in ours.items() if name in draft.VALIDATORS}
    return jsonschema.validators.extend(draft, ours)(plain, registry=REGISTRY)


def _multiple_of(validator: Any, step: Any, value: Any, schema: Any) -> Iterator[Any]:
    """multipleOf in the decimals that stand there: 19.99 is a multiple of 0.01, in binary it is not."""
    import jsonschema

    if validator.is_type(value, "number") and (_exact(value) / _exact(step)).denominator != 1:
        yield jsonschema.ValidationError("is not a multiple")


def _exact(number: float) -> Fraction:
    return Fraction(Decimal(repr(number)))


def _unique_items(validator: Any, unique: Any, value: Any, schema: Any) -> Iterator[Any]:
    """uniqueItems in linear time; the library compares each object with every other one."""
    import jsonschema

    if unique and validator.is_type(value, "array") and len({_identity(item) for item in value}) < len(value):
        yield jsonschema.ValidationError("has equal items")


def _identity(value: Any) -> Hashable:
    """Equal for values that JSON Schema calls equal: 1 and 1.0, fields in any order, but not 1 and true."""
    if isinstance(value, dict):
        return "object", frozenset((name, _identity(item)) for name, item in value.items())
    if isinstance(value, list):
        return "array", tuple(_identity(item) for item in value)
    return ("boolean", value) if isinstance(value, bool) else value


def _first_fault(validator: Any, value: Any) -> str:
    """Where the value does not fit, without the schema's values; "" if it fits."""
    from referencing.exceptions import Unresolvable

    try:
        error = next(validator.iter_errors(value), None)
    except Unresolvable as lost:
        raise ValueError(
            f"json_schema: the schema refers to {shown(lost.ref)}, which is not in it, and nothing is fetched"
        ) from None
    except RecursionError:
        if _endless(validator):
            raise ValueError("json_schema: the schema refers to itself without end") from None
        return "nested too deeply for this schema"
    if error is None:
        return ""
    return f"{short(error.json_path)} does not fit {short(str(error.validator))}"


def _endless(validator: Any) -> bool:
    """Whether the schema exhausts the stack on values without any depth."""
    flat_values: list[Any] = [None, 1, "", [], {}]
    try:
        for flat in flat_values:
            validator.is_valid(flat)
    except RecursionError:
        return True
    return False
