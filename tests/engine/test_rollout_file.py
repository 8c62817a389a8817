"""Rollouts written to a file and read back: what was judged comes back as it was."""

import dataclasses

import pyarrow.parquet as pq

from tests.tiny import rollout
from verigrad.engine import rollout_file
from verigrad.engine.schema import Episode, VerifiedGroup
from verigrad.verifiers.base import Attempt, Problem, Verdict

EPISODE = Episode(
    stop_reason="max_turns",
    transcript=[{"role": "assistant", "content": "<tool>shell ls</tool>"}, {"role": "tool", "content": "a"}],
    snapshot=b"tar\x00",
    num_turns=2,
    num_calls=1,
    num_errors=0,
)


def write(path, *pairs, problem=None):
    problem = problem or Problem("p", "1+1=", 2, {"level": 3})
    rollouts, verdicts = zip(*pairs, strict=True)
    rollout_file.write(path, 3, [VerifiedGroup(problem, rollouts, verdicts)], {})
    return list(rollout_file.read_attempts(path))


def test_problem_and_attempt_come_back_as_the_verifier_saw_them(tmp_path):
    one = dataclasses.replace(rollout([3, 4], [5]), text="ab", finish_reason="length")
    verdict = Verdict(0.5, "partial", {"format": 0.5}, "half", 0.1, "ab")
    chat = Problem("q", [{"role": "user", "content": "[1]"}], "5", {"level": 3})
    for problem in (Problem("p", "[1]", 5, {"tests": [1]}), chat):
        (row,) = write(tmp_path / f"{problem.id}.parquet", (one, verdict), problem=problem)
        assert row.problem == problem  # "5" stays text, 5 a number, and a prompt that looks like JSON text
        assert row.attempt == Attempt("ab", truncated=True)
        assert row.verdict == verdict
        assert (row.step, row.group, row.index, row.kept, row.episode) == (3, 0, 0, False, None)


def test_an_episode_comes_back_with_transcript_and_files(tmp_path):
    one = dataclasses.replace(rollout([3], [5, 6]), text="<tool>shell ls</tool>", episode=EPISODE)
    alone = rollout([3], [7])
    first, second = write(tmp_path / "e.parquet", (one, Verdict.wrong("no")), (alone, Verdict.undecided("x")))
    assert first.episode == EPISODE
    assert first.attempt == Attempt(one.text, transcript=EPISODE.transcript, snapshot=b"tar\x00")
    assert second.episode is None
    assert second.verdict == Verdict.undecided("x")


def test_files_of_earlier_versions_are_read(tmp_path):
    path = tmp_path / "old.parquet"
    write(path, (rollout([3], [7]), Verdict.right()))
    table = pq.read_table(path)
    new = ["json_columns", "stop_reason", "transcript", "snapshot", "num_turns", "stop_detail"]
    pq.write_table(table.drop_columns(new), path)
    (row,) = rollout_file.read_attempts(path)
    assert row.problem == Problem("p", "1+1=", "2", {"level": 3})  # nothing tells 2 from "2" there
    assert row.episode is None


def test_a_lost_sandbox_decides_nothing_and_a_flood_of_files_is_wrong():
    for reason in ("sandbox_lost", "setup_failed"):
        verdict = dataclasses.replace(EPISODE, stop_reason=reason, detail="gone").verdict
        assert not verdict.decided
        assert "gone" in verdict.reason
    assert dataclasses.replace(EPISODE, stop_reason="too_large").verdict.reward == 0.0
    assert EPISODE.verdict is None
