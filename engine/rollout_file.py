"""Rollouts of one step to a Parquet file, all that happened, a row each; and back to what was judged."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from verigrad.engine.checkpoint import sync_to_disk
from verigrad.engine.schema import Episode, Rollout, ScoredGroup, VerifiedGroup
from verigrad.verifiers.base import Attempt, Message, Problem, Verdict

SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("group", pa.int64()),
        ("index", pa.int64()),
        ("problem_id", pa.string()),
        ("prompt", pa.string()),
        ("answer", pa.string()),
        ("json_columns", pa.list_(pa.string())),  # which of prompt and answer are JSON, not text
        ("meta", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("loss_mask", pa.list_(pa.bool_())),
        ("logprobs", pa.list_(pa.float32())),
        ("policy_versions", pa.list_(pa.int32())),
        ("text", pa.string()),
        ("finish_reason", pa.string()),
        ("seed", pa.int64()),
        ("stop_reason", pa.string()),  # this and what follows: null where there was no episode
        ("stop_detail", pa.string()),
        ("num_turns", pa.int64()),
        ("num_tool_calls", pa.int64()),
        ("num_tool_errors", pa.int64()),
        ("transcript", pa.string()),  # JSON
        ("snapshot", pa.binary()),  # tar; null too where there was no final state
        ("reward", pa.float64()),
        ("outcome", pa.string()),
        ("parts", pa.string()),
        ("reason", pa.string()),
        ("extracted", pa.string()),
        ("verify_s", pa.float64()),
        ("advantage", pa.float64()),
        ("kept", pa.bool_()),
    ]
)


VERIFIER = b"verigrad.verifier"  # in the file's own metadata, JSON: who judged, see verifiers/identity.py


def write(
    path: Path,
    step: int,
    groups: Sequence[VerifiedGroup],
    kept: Mapping[int, ScoredGroup],
    *,
    judged_by: Mapping[str, Any] | None = None,
) -> None:
    """All groups sampled in a step; `kept` holds those trained on by their position in `groups`."""
    rows = [
        row
        for position, group in enumerate(groups)
        for row in _rows(step, position, group, kept.get(position))
    ]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    if judged_by is not None:
        table = table.replace_schema_metadata({VERIFIER: json.dumps(judged_by, default=str)})
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f"{path.name}.half")
    pq.write_table(table, half, compression="zstd")
    sync_to_disk(half)
    half.rename(path)


def _rows(step: int, position: int, group: VerifiedGroup, scored: ScoredGroup | None) -> list[dict[str, Any]]:
    problem = group.problem
    shared = {
        "step": step,
        "group": position,
        "problem_id": _unicode(problem.id),
        "prompt": _unicode(as_text(problem.prompt)),
        "answer": _unicode(as_text(problem.answer)),
        "json_columns": [
            name for name in ("prompt", "answer") if not isinstance(getattr(problem, name), str)
        ],
        "meta": json.dumps(dict(problem.meta), default=str),
        "kept": scored is not None,
    }
    return [
        {
            **shared,
            "index": index,
            "token_ids": rollout.token_ids,
            "loss_mask": rollout.loss_mask,
            "logprobs": rollout.logprobs,
            "policy_versions": rollout.policy_versions,
            "text": _unicode(rollout.text),
            "finish_reason": rollout.finish_reason,
            "seed": rollout.seed,
            **_episode_columns(rollout.episode),
            "reward": verdict.reward,
            "outcome": verdict.outcome,
            "parts": json.dumps(dict(verdict.parts)),
            "reason": _unicode(verdict.reason),
            "extracted": _unicode(verdict.extracted),
            "verify_s": verdict.seconds,
            "advantage": 0.0 if scored is None else scored.advantages[index],
        }
        for index, (rollout, verdict) in enumerate(zip(group.rollouts, group.verdicts, strict=True))
    ]


def _episode_columns(episode: Episode | None) -> dict[str, Any]:
    if episode is None:
        return {}
    return {
        "stop_reason": episode.stop_reason,
        "stop_detail": _unicode(episode.detail),
        "num_turns": episode.num_turns,
        "num_tool_calls": episode.num_calls,
        "num_tool_errors": episode.num_errors,
        "transcript": json.dumps(list(episode.transcript)),
        "snapshot": episode.snapshot,
    }


@dataclass(frozen=True, slots=True)
class Recorded:
    """One row of a file of rollouts: what was judged, and what was said of it."""

    step: int
    group: int  # position in the step; rows of one group share its problem
    index: int  # in the group
    problem: Problem
    attempt: Attempt
    verdict: Verdict
    episode: Episode | None  # where it has a verdict of its own, no verifier was asked
    kept: bool  # trained on


JUDGED = [
    "step", "group", "index", "problem_id", "prompt", "answer", "json_columns", "meta", "text",
    "finish_reason", "stop_reason", "stop_detail", "num_turns", "num_tool_calls", "num_tool_errors",
    "transcript", "snapshot", "reward", "outcome", "parts", "reason", "extracted", "verify_s", "kept",
]  # fmt: skip


def read_attempts(path: Path) -> Iterator[Recorded]:
    """What a verifier was given and said, row by row, in the file's order, which is group by group.

    Values that JSON does not hold (a date, say) come back as text, and half a surrogate pair as ?.
    """
    file = pq.ParquetFile(path)
    columns = [name for name in JUDGED if name in file.schema_arrow.names]
    for batch in file.iter_batches(batch_size=64, columns=columns):
        for row in batch.to_pylist():
            yield _recorded(row)


def read_judge(path: Path) -> dict[str, Any] | None:
    """Who judged a file's rollouts; None where an older version did not write it down."""
    stored = (pq.read_schema(path).metadata or {}).get(VERIFIER)
    judge: dict[str, Any] | None = None if stored is None else json.loads(stored)
    return judge


def _recorded(row: Mapping[str, Any]) -> Recorded:
    as_json = row.get("json_columns") or ()
    prompt, answer = (
        json.loads(row[name]) if name in as_json else row[name] for name in ("prompt", "answer")
    )
    episode = _episode(row)
    rollout = Rollout([], [], [], [], row["text"], row["finish_reason"], 0, episode)
    return Recorded(
        step=row["step"],
        group=row["group"],
        index=row["index"],
        problem=Problem(row["problem_id"], prompt, answer, json.loads(row["meta"])),
        attempt=rollout.attempt,
        verdict=Verdict(
            row["reward"],
            row["outcome"],
            parts=json.loads(row["parts"]),
            reason=row["reason"],
            seconds=row["verify_s"],
            extracted=row["extracted"],
        ),
        episode=episode,
        kept=row["kept"],
    )


def _episode(row: Mapping[str, Any]) -> Episode | None:
    if row.get("stop_reason") is None:
        return None
    transcript: list[Message] = json.loads(row["transcript"])
    return Episode(
        stop_reason=row["stop_reason"],
        transcript=transcript,
        snapshot=row["snapshot"],
        num_turns=row["num_turns"],
        num_calls=row["num_tool_calls"],
        num_errors=row["num_tool_errors"],
        detail=row["stop_detail"],
    )


def as_text(value: object) -> str:
    """Text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _unicode(text: str) -> str:
    """Half a surrogate pair, which JSON can smuggle into a verifier's reason, is not UTF-8: shown as ?."""
    return text.encode("utf-8", "replace").decode("utf-8")


def correctness(path: Path) -> dict[str, list[float]]:
    """Rewards of the decided rollouts by problem id, in file order."""
    table = pq.read_table(path, columns=["problem_id", "reward"]).to_pylist()
    rewards: dict[str, list[float]] = {row["problem_id"]: [] for row in table}
    for row in table:
        if row["reward"] is not None:
            rewards[row["problem_id"]].append(row["reward"])
    return rewards
