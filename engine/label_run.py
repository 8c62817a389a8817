"""Answers, judgements, labels -> a run folder of `verigrad label`, so that no kill makes it ask twice."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from verigrad.engine.checkpoint import name_of, sync_to_disk
from verigrad.engine.label_settings import CONSTITUTION, FEW_SHOT, RUBRIC, file_of
from verigrad.engine.run import Run, RunError, read_jsonl
from verigrad.verifiers.judge_base import Question, Reply

LABELS = "labels.jsonl"
JUDGEMENTS = "judgements.jsonl"
FREE = {
    f"judge.{name}"
    for name in ("url", "api_key_env", "concurrency", "requests_per_minute", "retries", "timeout_s",
                 "price_in", "price_out", "max_cost", "max_undecided_frac", "min_agreement")
}  # fmt: skip
"""Settings that may change between two starts."""


class LabelRun(Run):
    """A run folder whose steps are chunks of rows, and whose judgements are kept one by one."""

    def __enter__(self) -> "LabelRun":
        return self

    def _newest_whole(self) -> tuple[int, Path] | None:
        done = 0
        for row in self.metrics():
            if row["step"] != done + 1 or not (self._part("labels", done + 1).is_file() or self.done):
                break
            done += 1
        return (done, self.folder) if done else None

    def _harmless(self, name: str) -> bool:
        return name in FREE or super()._harmless(name)

    def record_environment(self, **facts: Any) -> None:
        """environment.json, and a copy of every file that the judge goes by, as it was."""
        super().record_environment(**facts)
        label = self.cfg.label
        named = {CONSTITUTION: label.constitution, RUBRIC: label.rubric, FEW_SHOT: label.few_shot}
        for name, path in named.items():
            if path:
                self._write(name, file_of(path).read_text(encoding="utf-8"))

    @property
    def labels(self) -> Path:
        """The rows of all chunks."""
        return self.folder / LABELS

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return self.labels.is_file()

    def _part(self, what: str, step: int) -> Path:
        return self.folder / what / f"{name_of(step)}.jsonl"

    def write_part(self, what: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Record the rows of a chunk below the folder `what`; they are on disk before this returns."""
        (self.folder / what).mkdir(exist_ok=True)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        with self._writing(f"{what}/{name_of(step)}.jsonl") as path:
            half = path.with_suffix(".half")
            half.write_text(text)
            sync_to_disk(half)
            half.rename(path)

    def read_part(self, what: str, step: int) -> list[dict[str, Any]] | None:
        """What `write_part` wrote; None where it did not."""
        path = self._part(what, step)
        return read_jsonl(path) if path.is_file() else None

    def count_tokens(self, num: int) -> None:
        """Count what the judge wrote in this chunk, for tokens_per_s."""
        self._num_tokens = num

    def join_parts(self, num_chunks: int) -> None:
        """All chunks' rows as labels.jsonl, which is there whole or not at all."""
        text = "".join(self._part("labels", step).read_text() for step in range(1, num_chunks + 1))
        if not text:
            raise RunError(
                f"no label came of it: every judgement was undecided, or every pair a tie; see "
                f"{self.folder / JUDGEMENTS}, remove {self.folder} and try another judge, or label.keep_ties"
            )
        self._write(LABELS, text)
        shutil.rmtree(self.folder / "labels", ignore_errors=True)

    # -- judgements ------------------------------------------------------------------------------------

    def open_judgements(self) -> "Judgements":
        """What was judged so far, and where to go on; a line that a kill cut off is removed."""
        path = self.folder / JUDGEMENTS
        if path.is_file():
            content = path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                with self._writing(JUDGEMENTS) as file:
                    os.truncate(file, whole)
        return Judgements(self, read_jsonl(path))


class Judgements:
    """Replies by row and question, each on disk before it is used."""

    def __init__(self, run: LabelRun, recorded: Sequence[Mapping[str, Any]]) -> None:
        self.run = run
        self.spent = sum(row["cost"] for row in recorded)
        self._known = {(row["row"], row["question"]): row for row in recorded if not row["error"]}

    def known(self, row: int, question: Question) -> Reply | None:
        """An earlier reply to this question of this row; a failure is asked again."""
        found = self._known.get((row, question.key))
        if found is None:
            return None
        return Reply(found["raw"], found["probs"], found["tokens_in"], found["tokens_out"], found["cost"],
                     found["seconds"])  # fmt: skip

    def record(self, row: int, question: Question, reply: Reply, **more: Any) -> None:
        """Append one judgement with everything: the whole question, the raw reply, probabilities, costs."""
        line = {
            "row": row,
            "question": question.key,
            "kind": question.kind,
            **more,
            "asked": question.text,
            "choices": list(question.choices),
            "raw": reply.text,
            "probs": None if reply.probs is None else dict(reply.probs),
            "tokens_in": reply.tokens_in,
            "tokens_out": reply.tokens_out,
            "cost": reply.cost,
            "seconds": round(reply.seconds, 4),
            "error": reply.error,
        }
        text = json.dumps(line, ensure_ascii=True) + "\n"
        with self.run._writing(JUDGEMENTS) as path, path.open("a") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        self.spent += reply.cost
