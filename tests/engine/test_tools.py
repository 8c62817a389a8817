"""Tools: what they do in a sandbox, what they tell, and what settings of [agent] are refused."""

import dataclasses

import pytest

from tests.agents import MEMORY
from tests.tiny import config, rollout
from verigrad.engine import dry_run, tools
from verigrad.engine.config import ConfigError
from verigrad.engine.config_checks import contradictions
from verigrad.engine.dynamic_sampling import group_stats
from verigrad.engine.schema import Episode, VerifiedGroup
from verigrad.engine.tools import Call, clipped, printed
from verigrad.sandboxes.base import ExecResult
from verigrad.verifiers.base import Problem, Verdict

TOOLS = tools.load(["shell", "python", "edit_file"])


@pytest.fixture
def box():
    with MEMORY.open() as opened:
        yield opened


def told(box, name, **arguments):
    return tools.run(Call(name, arguments), TOOLS, box, max_chars=200).text


def test_edit_file_writes_whole_files_and_replaces_what_is_there_once(box):
    assert told(box, "edit_file", path="a", new="one two two") == "wrote a"
    assert told(box, "edit_file", path="a", old="one", new="1") == "edited a"
    assert box.files["a"] == b"1 two two"
    assert "holds `old` 2 times" in told(box, "edit_file", path="a", old="two", new="2")
    assert "holds `old` 0 times" in told(box, "edit_file", path="a", old="six", new="6")
    assert told(box, "edit_file", path="b", old="x", new="y") == "error: edit_file: no file b"
    assert "outside" in told(box, "edit_file", path="/etc/passwd", new="y")
    box.files["raw"] = b"\xff"
    assert told(box, "edit_file", path="raw", old="x", new="y").startswith("error: edit_file:")
    assert told(box, "edit_file", path="a", new="\ud800").startswith("error: edit_file:")
    assert box.files["a"] == b"1 two two"


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (ExecResult("exited", 0, b"out\n", b"", 0.1), "out"),
        (ExecResult("exited", 2, b"out\n", b"bad\n", 0.1), "out\nbad\n[exit status 2]"),
        (ExecResult("exited", 1, b"", b"", 0.1), "[exit status 1]"),
        (ExecResult("signalled", None, b"", b"", 0.1, signal=11), "[signal 11]"),
        (ExecResult("wall_time", None, b"\xff", b"", 9.0, detail="killed at 9 s"), "\ufffd\n[killed at 9 s]"),
    ],
)
def test_how_a_command_ended_is_told(result, text):
    assert printed(result) == text


def test_a_command_that_prints_nothing_says_so(box):
    assert told(box, "shell", command="put a 1") == tools.NOTHING


def test_half_a_surrogate_pair_never_reaches_a_tokenizer():
    clipped("a\ud800b", 10).encode()
    assert clipped("a\ud800b", 10) == "a?b"


def test_cutting_keeps_head_and_tail_and_says_how_much_is_gone():
    assert clipped("abcdefg", 7) == "abcdefg"
    assert clipped("abcdefg", 3) == "ab\n[4 characters left out]\ng"
    assert clipped("abcdefg", 1) == "a\n[6 characters left out]\n"


@pytest.mark.parametrize(
    ("agent", "reason"),
    [
        ({"max_turns": 3}, "agent.max_turns has no effect without agent.tools"),
        ({"protocol": "text"}, "agent.protocol has no effect without agent.tools"),
        ({"tools": ["shell"], "max_turn_tokens": 64}, "agent.max_turn_tokens = 64 has no effect"),
        ({"tools": ["shell"], "tool_seconds": 300}, "agent.tool_seconds = 300 has no effect above"),
        ({"tools": ["shell"], "artifacts": []}, "agent.artifacts is empty"),
    ],
)
def test_settings_without_effect_are_refused(agent, reason):
    (line,) = contradictions(config(agent=agent))
    assert reason in line


def test_the_chat_protocol_without_chat_is_refused():
    (line,) = contradictions(
        config(agent={"tools": ["shell"], "protocol": "chat"}, prompts={"chat": "never"})
    )
    assert "cannot be with prompts.chat = 'never'" in line


def test_a_dry_run_looks_for_the_tools():
    with pytest.raises(ConfigError, match="'shel' is not known"):
        dry_run.check(config(agent={"tools": ["shel"]}))


def test_metrics_tell_how_episodes_went():
    def episode(reason, turns, calls, errors):
        made = Episode(reason, [], b"", num_turns=turns, num_calls=calls, num_errors=errors)
        return dataclasses.replace(rollout([3], [4]), episode=made)

    made = [episode("answered", 3, 2, 1), episode("max_turns", 5, 2, 0)]
    groups = [VerifiedGroup(Problem("p", "p"), made, [Verdict.right(), Verdict.wrong()])]
    row = group_stats(groups, groups)
    assert row["agent/turns_mean"] == 4
    assert row["agent/tool_calls_mean"] == 2
    assert row["agent/tool_error_frac"] == 0.25
    assert row["agent/stop/answered"] == row["agent/stop/max_turns"] == 0.5
    assert row["agent/stop/sandbox_lost"] == 0
    alone = [VerifiedGroup(Problem("p", "p"), [rollout([3], [4])], [Verdict.right()])]
    assert not [name for name in group_stats(alone, alone) if name.startswith("agent/")]
