"""Hostile and honest programs of code_cases.jsonl, judged through `verigrad verify` in the real sandboxes."""

import json
import shutil
from pathlib import Path

import pytest

from tests import boxes
from verigrad.engine import cli

ROWS = [json.loads(line) for line in Path(__file__).with_name("code_cases.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module", params=boxes.KINDS)
def sandbox(request):
    boxes.require(request.param)
    return request.param


@pytest.fixture(scope="module", params=["program_output", "unit_tests"])
def judged(request, sandbox, tmp_path_factory):
    """(case, verdict) of every case of one verifier."""
    folder = tmp_path_factory.mktemp("cases")
    rows = [row for row in ROWS if row["verifier"] == request.param]
    cases, out = folder / "cases.jsonl", folder / "out.jsonl"
    kept = ("id", "response", "meta")
    cases.write_text("".join(json.dumps({key: row[key] for key in kept}) + "\n" for row in rows))
    words = ["verify", request.param, str(cases), "-o", str(out), "--sandbox", sandbox]
    status = cli.guarded(words)
    both = list(zip(rows, map(json.loads, out.read_text().splitlines()), strict=True))
    assert not [(row["id"], verdict["reason"]) for row, verdict in both if verdict["reward"] is None]
    assert status == 0
    return both


def test_every_program_gets_the_verdict_it_deserves(judged):
    wrong = [
        f"{row['id']}: {verdict['outcome']} instead of {row['want']} ({verdict['reason']})"
        for row, verdict in judged
        if verdict["outcome"] not in (row["want"] if isinstance(row["want"], list) else [row["want"]])
    ]
    assert not wrong, "\n".join(wrong)


def test_rewards_and_reasons_fit_the_outcome(judged):
    for row, verdict in judged:
        assert verdict["reward"] == (1.0 if verdict["outcome"] == "right" else 0.0), row["id"]
        assert verdict["reason"], row["id"]
        assert "\n" not in verdict["reason"], row["id"]
        assert len(verdict["reason"]) < 300, row["id"]


def test_a_reason_never_tells_what_was_expected(judged):
    """Each expected output of at least two characters that the program itself does not write."""
    for row, verdict in judged:
        tests = row["meta"].get("tests", [])
        for secret in (test["stdout"].strip() for test in tests):
            if len(secret) > 1 and secret not in row["response"]:
                assert f" {secret}" not in verdict["reason"], row["id"]


def test_there_are_enough_of_both_kinds():
    wants = ["right" if row["want"] == "right" else "no" for row in ROWS]
    assert len(ROWS) >= 120
    assert wants.count("right") >= 20
    assert len({row["id"] for row in ROWS}) == len(ROWS)


def test_a_missing_sandbox_is_one_line_and_no_verdict(tmp_path, capsys, monkeypatch):
    cases = tmp_path / "cases.jsonl"
    cases.write_text(json.dumps({key: ROWS[0][key] for key in ("response", "meta")}) + "\n")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert cli.guarded(["verify", "unit_tests", str(cases), "--sandbox", "bubblewrap"]) == 1
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert "bwrap is not installed" in said.err
    assert not said.out
