"""`verigrad algorithms`: rows and preference losses, for people and for programs."""

import json

import pytest

from verigrad.engine.catalogue import ROWS
from verigrad.engine.cli import guarded
from verigrad.engine.preference_catalogue import PREFERENCES


def test_the_table_names_every_row_and_every_preference_loss(capsys):
    assert guarded(["algorithms"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.split()]
    assert {*ROWS, *PREFERENCES} <= set(names)


def test_a_program_reads_rows_parts_and_preference_losses(capsys):
    assert guarded(["algorithms", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in told["rows"]] == list(ROWS)
    assert [one["name"] for one in told["preferences"]] == list(PREFERENCES)
    assert told["losses"]["clip"]["settings"] == {"clip_low": 0.2, "clip_high": 0.2}


def test_one_preference_loss_says_what_it_needs_and_starts_from(capsys):
    assert guarded(["algorithms", "kto"]) == 0
    told = capsys.readouterr().out
    assert "single answers, good or bad" in told
    assert "the starting model" in told
    assert "beta = 0.1, good_weight = 1, bad_weight = 1" in told
    assert guarded(["algorithms", "orpo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reference"] is False


def test_one_row_says_its_parts(capsys):
    assert guarded(["algorithms", "gspo"]) == 0
    assert "clip_low = 0.0003" in capsys.readouterr().out


@pytest.mark.parametrize(("given", "meant"), [("simp", "simpo"), ("gspoo", "gspo")])
def test_a_name_that_is_not_there_is_told_the_nearest(given, meant, capsys):
    assert guarded(["algorithms", given]) == 2
    assert f"did you mean '{meant}'" in capsys.readouterr().err
