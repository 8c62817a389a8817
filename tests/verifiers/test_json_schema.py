"""json_schema: what parses, what fits, and what must never be looked up or waited for."""

# ruff: noqa: E501, RUF001 - tables are read by columns, and hold look-alike signs on purpose

import socket
import time

import pytest

from verigrad.verifiers.base import Attempt, Problem
from verigrad.verifiers.binding import bind
from verigrad.verifiers.isolation import VerifierPool
from verigrad.verifiers.json_schema import json_schema

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["crimson", "blue"]}, "uniqueItems": True},
        "friend": {"$ref": "#/$defs/named"},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
    "$defs": {"named": {"type": "object", "required": ["name"]}},
}
GOOD = '{"name": "Ann", "age": 3}'


def load(**options):
    return bind(json_schema, name="json_schema", source="here", options=options)


def judge(text, schema=PERSON, **options):
    (verdict,) = load(**options).judge(Problem("p", "?", None, {"schema": schema}), [Attempt(text)])
    return verdict


@pytest.mark.parametrize(
    "text",
    [
        GOOD, f"  {GOOD}\n", f"<think>{{}}</think>{GOOD}", f"Here it is:\n```json\n{GOOD}\n```\n", f"```JSON\n{GOOD}\n```", '{"name":"\\u0041","age":1.0}',
        '{"name": "Ann", "age": 3, "tags": ["crimson", "blue"]}', '{"name": "Ann", "age": 3, "friend": {"name": 1, "x": []}}', '{"age": 0, "name": "日本"}', '{"name": "``` {[", "age": 150}',
        '{"name": "\\ud800", "age": 1}',
    ],
)  # fmt: skip
def test_right(text):
    verdict = judge(text)
    assert (verdict.reward, verdict.outcome) == (1.0, "right"), verdict.reason
    assert dict(verdict.parts) == {"parses": 1.0, "fits": 1.0}


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("{}", "$ does not fit required"),
        ("[]", "$ does not fit type"),
        ("null", "$ does not fit type"),
        ('"{}"', "$ does not fit type"),
        ('{"name": "", "age": 3}', "$.name does not fit minLength"),
        ('{"name": 3, "age": 3}', "$.name does not fit type"),
        ('{"name": "A", "age": "3"}', "$.age does not fit type"),
        ('{"name": "A", "age": true}', "$.age does not fit type"),
        ('{"name": "A", "age": 3.5}', "$.age does not fit type"),
        ('{"name": "A", "age": -1}', "$.age does not fit minimum"),
        ('{"name": "A", "age": 1e99}', "$.age does not fit maximum"),
        ('{"name": "A", "age": 3, "x": 1}', "$ does not fit additionalProperties"),
        ('{"name": "A", "age": 3, "tags": ["green"]}', "$.tags[0] does not fit enum"),
        ('{"name": "A", "age": 3, "tags": ["crimson", "crimson"]}', "$.tags does not fit uniqueItems"),
        ('{"name": "A", "age": 3, "friend": {}}', "$.friend does not fit required"),
        ('{"Name": "A", "age": 3}', "$ does not fit required"),
        ('{"nаme": "A", "age": 3}', "$ does not fit required"),  # a Cyrillic letter
    ],
)
def test_wrong_says_where_and_not_what_was_wanted(text, where):
    verdict = judge(text)
    assert (verdict.reward, verdict.outcome, verdict.reason) == (0.0, "wrong", where)
    assert dict(verdict.parts) == {"parses": 1.0, "fits": 0.0}
    assert "crimson" not in verdict.reason


@pytest.mark.parametrize(
    "text",
    [
        "", "  ", "no", GOOD + GOOD, GOOD + " ok?", "It is " + GOOD, "{'name': 'A', 'age': 3}", '{"name": "A", "age": 3,}', '{"name": "A" "age": 3}', '{"name": "A", "age": 3',
        '{"name": "A", "age": 03}', '{"name": "A", "age": NaN}', '{"name": "A", "age": Infinity}', '{"name": "A", "age": -Infinity}', '{"name": "A", "age": 1e999}', '{"name": "A", "age": ３}',
        '{"name": "A", "age": 9, "age": 3}', '{"name": "A", "age": 3, "friend": {"name": 1, "name": 2}}', '{"name": "A", "age": %s}' % ("9" * 101), '{"name": "A", "age": 0.%s}' % ("9" * 200),
        '{"name": "A", "age": 3} // fine', '/* */ {"name": "A", "age": 3}', '{"name": "A\n", "age": 3}', "[" * 65 + "]" * 65, "[" * 20_000, "{" * 9000, '"' * 20_000,
        '{"name": "' + "x" * 20_000 + '", "age": 3}', f"<think>{GOOD}", f"<think>{GOOD}</think>", "\ufeff" + GOOD, "“name”",
        # fences: exactly one, marked json, closed, and last
        f"```json\n{GOOD}\n```\n```json\n{GOOD}\n```", f"```json\n{GOOD}\n```\nor maybe not", f"```json\n{GOOD}", f"```\n{GOOD}\n```", f"```python\n{GOOD}\n```", "```json\n```", f"```json\n{GOOD}\n```json",
    ],
)  # fmt: skip
def test_unreadable(text):
    verdict = judge(text)
    assert (verdict.reward, verdict.outcome, verdict.extracted) == (0.0, "unparseable", ""), verdict.reason
    assert len(verdict.reason) < 200


def test_where_it_is_read():
    fenced = f"```json\n{GOOD}\n```"
    assert judge(fenced, extract="whole").outcome == "unparseable"
    assert judge(GOOD, extract="whole").reward == 1.0
    assert judge(GOOD, extract="fence").outcome == "unparseable"
    assert judge(fenced, extract="fence").reward == 1.0


def test_equal_values_read_the_same():
    assert (
        judge(GOOD).extracted == judge('{"age":3,\n"name":"\\u0041nn"}').extracted == '{"age":3,"name":"Ann"}'
    )
    assert judge('{"name": "%s", "age": 3}' % ("x" * 600)).extracted.startswith("sha256:")


def test_the_schema_may_be_text_or_an_option_and_names_its_draft():
    assert judge("3", '{"type": "integer"}').reward == 1.0
    (verdict,) = load(schema={"type": "integer"}).judge(Problem("p", "?"), [Attempt("3")])
    assert verdict.reward == 1.0
    old = {"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 3, "exclusiveMinimum": True}
    assert judge("3", old).reward == 0.0
    assert judge("4", old).reward == 1.0
    assert judge("true", {"const": 1}).reward == 0.0
    assert judge("[1, true]", {"uniqueItems": True}).reward == 1.0


@pytest.mark.parametrize(
    ("value", "step", "fits"),
    [
        ("19.99", 0.01, True), ("0.3", 0.1, True), ("1.1", 0.1, True), ("4.35", 0.05, True), ("-19.99", 0.01, True), ("0", 0.01, True), ("-0.0", 0.01, True),
        ("7", 0.5, True), ("6.0", 3, True), ("1e308", 0.01, True), ("1e2", 10, True), ("3e-7", 1e-7, True), ("9" * 100, 3, True), ("1e300", 1e-300, True),
        ("19.995", 0.01, False), ("0.35", 0.1, False), ("7.5", 2, False), ("7", 2, False), ("1e-300", 0.01, False), ("1", 0.3, False),
        ("true", 2, True), ('"x"', 2, True),  # no numbers, of which the keyword says nothing
    ],
)  # fmt: skip
def test_multiples_are_exact_in_decimals(value, step, fits):
    assert judge(value, {"multipleOf": step}).reward == float(fits)
    old = {"$schema": "http://json-schema.org/draft-03/schema#", "divisibleBy": step}
    assert judge(value, old).reward == float(fits)


@pytest.mark.parametrize(
    ("value", "unique"),
    [
        ("[]", True), ("[1, 1.0]", False), ("[0, -0.0]", False), ("[1, true]", True), ("[0, false]", True), ("[[1], [true]]", True), ("[[1], [true], [1]]", False),
        ('["1", 1]', True), ("[null, null]", False), ("[null, false, 0, \"\", [], {}]", True), ("[[], {}]", True), ('[{"a": 1, "b": 2}, {"b": 2.0, "a": 1}]', False),
        ('[{"a": [1]}, {"a": [true]}]', True), ("[[1, 2], [2, 1]]", True), ('["a", "A"]', True), ('["a", "\\u0061"]', False), ('[["array", []], []]', True),
        ('{"a": 1}', True),
    ],
)  # fmt: skip
def test_items_are_unique_as_json_schema_compares_them(value, unique):
    assert judge(value, {"uniqueItems": True}).reward == float(unique)
    assert judge(value, {"uniqueItems": False}).reward == 1.0


def test_a_draft_and_a_reference_keep_the_exact_keywords():
    for draft in ("draft-04/schema#", "draft-07/schema#", "draft/2019-09/schema", "draft/2020-12/schema"):
        price = {
            "anyOf": [
                {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
                {"type": "number", "multipleOf": 0.01},
            ]
        }
        uri = ("http" if "-0" in draft[:8] else "https") + "://json-schema.org/" + draft
        assert judge("[[19.99]]", {"$schema": uri, **price, "type": ["array", "number"]}).reward == 1.0, draft
        assert judge("[[19.995]]", {"$schema": uri, **price, "type": ["array", "number"]}).reward == 0.0, (
            draft
        )


def test_many_objects_are_compared_in_linear_time():
    many = "[" + ",".join(f'{{"a":{n}}}' for n in range(1700)) + "]"
    started = time.perf_counter()
    assert judge(many, {"uniqueItems": True}).reward == 1.0
    assert judge(many[:-1] + ',{"a":0}]', {"uniqueItems": True}).reward == 0.0
    assert (
        judge(
            "[" * 60 + many + "]" * 60,
            {"$ref": "#/$defs/u", "$defs": {"u": {"uniqueItems": True, "items": {"$ref": "#/$defs/u"}}}},
        ).reward
        == 1.0
    )
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        (None, "schema = None; expected an object"),
        ([], "schema = []"),
        ("{", "schema is text and not JSON"),
        ({"type": "strin"}, "not a schema at $.type"),
        ({"minimum": "3"}, "not a schema at $.minimum"),
        ({"$schema": "https://example.com/mine"}, "unknown draft"),
        ({"$ref": "https://example.com/other.json"}, "nothing is fetched"),
        ({"$ref": "other.json"}, "nothing is fetched"),
        ({"$ref": "file:///etc/passwd"}, "nothing is fetched"),
        ({"$ref": "#/$defs/nowhere"}, "nothing is fetched"),
    ],
)
def test_a_schema_that_cannot_be_used_is_an_error_and_nothing_is_fetched(schema, says, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(ValueError, match="json_schema") as raised:
        judge("{}", schema)
    assert says in str(raised.value)


def test_the_published_drafts_may_be_referred_to():
    meta = {"$ref": "https://json-schema.org/draft/2020-12/schema"}
    assert judge('{"type": "string"}', meta).reward == 1.0
    assert judge('{"type": 3}', meta).reward == 0.0


def test_a_schema_without_end_is_its_own_fault_and_deep_text_is_the_models():
    with pytest.raises(ValueError, match="refers to itself without end"):
        judge("1", {"$ref": "#"})
    tree = {
        "$ref": "#/$defs/tree",
        "$defs": {
            "tree": {"anyOf": [{"type": "integer"}, {"items": {"$ref": "#/$defs/tree"}, "type": "array"}]}
        },
    }
    assert judge("[" * 64 + "1" + "]" * 64, tree).reward == 1.0
    assert judge("[" * 64 + "null" + "]" * 64, tree).reward == 0.0
    deep = {"items": {"$ref": "#"}}
    for _ in range(40):
        deep = {"allOf": [deep], **({"items": {"$ref": "#"}} if _ == 39 else {})}
    assert judge("[" * 64 + "]" * 64, deep).reward is not None


def test_a_row_without_a_schema_is_refused_before_judging():
    with pytest.raises(ValueError, match="needs 'schema'"):
        load().check_row(Problem("p", "?"))
    with pytest.raises(ValueError, match="extract = 'first'; expected one of auto, whole, fence"):
        load(extract="first")


def test_hostile_texts_take_no_time():
    started = time.perf_counter()
    for text in (
        "```json\n" * 6000,
        '"\\' * 9000,
        "[[" * 9000,
        '{"a":' * 3000,
        "```" + " " * 19_000,
        "[" + "1," * 9900 + "1]",
    ):
        judge(text)
    assert time.perf_counter() - started < 2


def test_a_pattern_that_explodes_costs_the_attempt_its_deadline_only():
    row = Problem("p", "?", None, {"schema": {"pattern": "^(a+)+$"}})
    with VerifierPool("json_schema", num_workers=1, deadline_s=0.5) as pool:
        slow, fine = pool.submit(row, [Attempt('"' + "a" * 60 + '!"'), Attempt('"aaa"')]).result(60)
    assert (slow.outcome, slow.reward) == ("timeout", 0.0)
    assert fine.reward == 1.0
