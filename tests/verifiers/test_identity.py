import sys

import pytest

from verigrad.verifiers import registry
from verigrad.verifiers.identity import changes, identity, source_hash, sources

TRUE_REWARD = "verigrad.engine.recipes.small_talk:true_reward"


def test_every_built_in_verifier_has_its_own_hash():
    hashes = {name: source_hash(name) for name in registry.BUILTIN}
    assert None not in hashes.values()
    alike = ({"reward_model", "process_reward"}, {"judge_score", "rubric"})  # two classes of one file
    told_apart = {value for name, value in hashes.items() if not any(name in pair for pair in alike)}
    assert len(told_apart) == len(hashes) - 4
    assert "verigrad.verifiers.math_answer" not in sources("exact_match", {})
    assert "verigrad.verifiers.base" in sources("exact_match", {})


def test_a_dotted_path_has_the_hash_of_its_module_and_of_the_neighbours_it_imports():
    assert source_hash(TRUE_REWARD) is not None
    assert {"verigrad.engine.recipes.small_talk", "verigrad.engine.recipes.small_talk_gold"} <= set(
        sources(TRUE_REWARD, {})
    )


def test_a_combine_is_told_by_its_parts_too():
    def combined(name):
        return source_hash("combine", {"parts": {"one": {"verifier": name}}})

    assert len({combined("exact_match"), combined(TRUE_REWARD), source_hash("combine")}) == 3


def test_a_neighbour_that_changes_is_a_change(tmp_path, monkeypatch):
    package = tmp_path / "judges_of_mine"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "judge.py").write_text("from .inner import rules\nimport json\ndef judge(text): ...\n")
    (package / "inner" / "__init__.py").write_text("")
    rules = package / "inner" / "rules.py"
    rules.write_text("from .. import words\nLIMIT = 1\n")
    (package / "words.py").write_text("WORDS = 1\n")
    (package / "other.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "judges_of_mine.judge:judge"
    assert {key.removeprefix("judges_of_mine.") for key in sources(name, {})} == {
        "judge", "inner", "inner.rules", "words",
    }  # fmt: skip
    before = identity(name, {}, version="1")
    assert changes(before, identity(name, {}, version="1")) == []
    rules.write_text("from .. import words\nLIMIT = 2\n")
    (said,) = changes(before, identity(name, {}, version="1"))
    assert said.startswith("source '")
    assert "judges_of_mine.judge" not in sys.modules  # its hash is read, not run


def test_a_file_is_told_by_its_bytes_and_what_is_no_file_has_none(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def judge(text): ...\n")
    first = source_hash(f"{file}:judge")
    assert first is not None
    file.write_text("def judge(text): return None\n")
    assert source_hash(f"{file}:judge") not in (None, first)
    assert source_hash(f"trl:{file}:judge") not in (None, first)
    for name in ("sys:exit", "no.such:thing", "nothing", ":", "a:", ":a"):
        assert source_hash(name) is None, name


@pytest.mark.parametrize("options", [{"parts": 3}, {"parts": {"a": 3}}, {"parts": {"a": {"verifier": 3}}}])
def test_options_that_will_not_do_are_no_error_here(options):
    assert source_hash("combine", options) == source_hash("combine")


def test_a_source_that_was_not_recorded_is_no_change():
    before = {"name": "a", "version": "1", "options": {}, "source": None}
    assert changes(before, {**before, "source": "abc"}) == []
    assert changes({**before, "source": "abc"}, before) == ["source 'abc' -> None"]
