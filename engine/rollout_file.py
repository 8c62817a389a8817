"""Rollouts of one step as a Parquet file: everything that happened, one row per rollout."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from verigrad.engine.checkpoint import sync_to_disk
from verigrad.engine.schema import ScoredGroup, VerifiedGroup

SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("group", pa.int64()),
        ("index", pa.int64()),
        ("problem_id", pa.string()),
        ("prompt", pa.string()),
        ("answer", pa.string()),
        ("meta", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("loss_mask", pa.list_(pa.bool_())),
        ("logprobs", pa.list_(pa.float32())),
        ("policy_versions", pa.list_(pa.int32())),
        ("text", pa.string()),
        ("finish_reason", pa.string()),
        ("seed", pa.int64()),
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


def write(path: Path, step: int, groups: Sequence[VerifiedGroup], kept: Mapping[int, ScoredGroup]) -> None:
    """All groups sampled in a step; `kept` holds those trained on by their position in `groups`."""
    rows = [
        row
        for position, group in enumerate(groups)
        for row in _rows(step, position, group, kept.get(position))
    ]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
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
