"""Environments: found by name, settled into recipes; of every task the oracle passes, and nothing else."""

import dataclasses

import pytest

from tests import boxes
from verigrad.engine import config, environment, makers
from verigrad.engine.config import ConfigError
from verigrad.engine.data import normalised, to_problem
from verigrad.engine.episode_row import setup_of
from verigrad.engine.recipes import chores, number_trail
from verigrad.sandboxes.base import SandboxSpec
from verigrad.sandboxes.pool import SandboxPool, SandboxSettings
from verigrad.verifiers import registry
from verigrad.verifiers.agent_rehearsal import doings, rehearse


@pytest.fixture(scope="module", params=boxes.KINDS)
def pool(request):
    boxes.require(request.param)
    with SandboxPool(SandboxSettings(SandboxSpec(request.param))) as opened:
        yield opened


def verdicts(row, pool):
    """(name, whether it must pass, verdict) for everything the row says somebody might do."""
    problem, verifier = to_problem(row, {}), registry.load("agent_task")
    for name, must_pass, doing in doings(problem):
        attempt = pool.run(lambda box, one=doing: rehearse(problem, one, box))

        def judged(box, attempt=attempt):
            box.load(attempt.snapshot)
            return verifier.judge(problem, [dataclasses.replace(attempt, sandbox=box)])[0]

        yield name, must_pass, pool.run(judged)


ROWS = {row["meta"]["task"]: row for row in chores.problems(seed=7, num_problems=39)}


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_chores_oracle_passes_and_doing_nothing_or_cheating_does_not(name, pool):
    seen = 0
    for what, must_pass, verdict in verdicts(ROWS[name], pool):
        assert verdict.reward is not None, (what, verdict)
        assert (verdict.reward == 1) == must_pass, (what, verdict)
        seen += 1
    assert seen >= 4  # the oracle, nothing, and two cheats at least


@pytest.mark.slow
def test_many_variants_of_every_chore_hold(pool):
    wrong = [
        (row["meta"]["task"], what, verdict)
        for row in chores.problems(seed=11, num_problems=4 * 39)
        for what, must_pass, verdict in verdicts(row, pool)
        if (verdict.reward == 1) != must_pass or verdict.reward is None
    ]
    assert not wrong


def test_there_are_at_least_thirty_kinds_of_chores():
    assert len(ROWS) == sum(map(len, chores.TOPICS.values())) >= 30


def test_chores_are_the_same_for_a_seed_and_differ_in_their_prompts():
    rows = chores.problems(seed=3, num_problems=390)
    assert rows == chores.problems(seed=3, num_problems=390)
    assert rows != chores.problems(seed=4, num_problems=390)
    assert len({normalised(row["prompt"]) for row in rows}) > 330  # held out by prompt


def test_topics_can_be_chosen_and_must_exist():
    assert {row["meta"]["topic"] for row in chores.problems(seed=0, num_problems=30, topics=["find"])} == {
        "find"
    }
    with pytest.raises(ConfigError, match="expected some of fix, find, data"):
        makers.make_rows("environment:chores", seed=0, options={"topics": ["cook"]})


def test_the_trail_ends_at_the_answer_and_only_there(pool):
    for row in number_trail.problems(seed=1, num_problems=8):
        for what, must_pass, verdict in verdicts(row, pool):
            assert (verdict.reward == 1) == must_pass, (row, what, verdict)


def test_following_the_notes_leads_to_the_answer():
    for row in number_trail.problems(seed=2, num_problems=40):
        files, name = row["meta"]["setup"]["files"], row["prompt"].removesuffix("?")
        while files[name].startswith("see "):
            name = files[name].removeprefix("see ")
        a, times, b = files[name].partition("*")
        assert row["answer"] == (str(int(a) * int(b)) if times else a)
        assert not number_trail.is_reserved(row["prompt"].removesuffix("?"))


def test_the_teacher_writes_what_the_alphabet_can_say_and_mostly_gives_up():
    import random

    alphabet, rng, ends = number_trail.new_alphabet(), random.Random(0), []
    shown = number_trail.demonstrations(rng)
    for _ in range(2000):
        before, turn, last = next(shown)
        ids, num_before = number_trail.as_tokens(alphabet, before, turn, last)
        assert 0 < num_before < len(ids) <= alphabet.positions
        assert (ids[-1] == alphabet.ids["<eos>"]) == last
        if last:
            ends.append(turn)
    assert 0.1 < sum(turn != "<answer>?</answer>" for turn in ends) / len(ends) < 0.35


@pytest.mark.parametrize("name", ["chores", "number_trail"])
def test_rows_start_episodes(name):
    shipped = environment.load(name)
    for row in makers.make_rows(f"environment:{name}", seed=0, options={"num_problems": 39}):
        assert setup_of(to_problem(row, {}), shipped.tools).files or name == "chores"


# How environments are found and what they settle ------------------------------------------------------------

MINE = """
from verigrad.engine.environment import Environment

def rows(*, seed, num=2):
    made = [{"file": str(n), "exists": True} for n in range(num)]
    return [{"prompt": f"make a file {one['file']}", "meta": {"check": [one]}} for one in made]

MINE = Environment(rows=rows, tools=["shell"], max_turns=3, verifier="agent_task", sandbox={"memory_mb": 256})
OTHER = 3
"""


def recipe(folder, text):
    (folder / "r.toml").write_text(f'[policy]\nmodel = "m"\n[eval]\nevery = 0\n{text}')
    return str(folder / "r.toml")


def test_a_recipe_gets_what_its_environment_says_where_it_is_silent(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    cfg = config.load(recipe(tmp_path, '[data]\npath = "environment:mine.py:MINE"\noptions = {num = 3}\n'))
    assert (cfg.agent.tools, cfg.agent.max_turns, cfg.verifier.name) == (["shell"], 3, "agent_task")
    assert cfg.sandbox.memory_mb == 256
    assert len(makers.make_rows(cfg.data.path, seed=0, options=cfg.data.options)) == 3
    own = '[agent]\ntools = ["python"]\n[verifier]\nname = "random"\n'
    cfg = config.load(recipe(tmp_path, f'[data]\npath = "environment:mine.py:MINE"\n{own}'))
    assert (cfg.agent.tools, cfg.agent.max_turns, cfg.verifier.name) == (["python"], 3, "random")


def test_a_settled_recipe_says_everything_itself(tmp_path):
    cfg = config.load("agent_chores")
    (tmp_path / "again.toml").write_text(config.to_toml(cfg))
    assert config.load(str(tmp_path / "again.toml")) == cfg


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("chore", "did you mean 'chores'?"),
        ("kitchen", "known: chores, harbor, number_trail"),
        ("mine.py:OTHER", "is int; expected an Environment"),
        ("mine.py:NOBODY", "mine.py has no 'NOBODY'; its environments: "),
        ("nowhere.py:MINE", "no file nowhere.py"),
    ],
)
def test_an_environment_that_is_not_there_is_said_in_one_line(name, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    with pytest.raises(ConfigError) as caught:
        config.load(recipe(tmp_path, f'[data]\npath = "environment:{name}"\n'))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_installed_package_may_bring_environments(monkeypatch):
    from importlib.metadata import EntryPoint

    point = EntryPoint("theirs", "verigrad.engine.recipes.chores:CHORES", environment.GROUP)
    monkeypatch.setattr(environment, "entry_points", lambda group: [point])
    assert environment.load("theirs") is chores.CHORES
    assert environment.available()["theirs"] == point.value
    taken = EntryPoint("chores", "x:y", environment.GROUP)
    monkeypatch.setattr(environment, "entry_points", lambda group: [taken])
    with pytest.raises(ConfigError, match="the name of a built-in one"):
        environment.available()
