"""A prompt and an answer -> token ids and the columns a reward is read at; texts -> packed batches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from verigrad.engine.pack import first_fit
from verigrad.engine.prompts import Prompter
from verigrad.engine.reward_card import Card
from verigrad.engine.rows import BadRow
from verigrad.engine.settings import PromptsConfig
from verigrad.verifiers.base import Problem

Prompt = Problem | str | Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Text:
    """One prompt with one answer, as tokens."""

    token_ids: Sequence[int]  # [L]
    reads: Sequence[int]  # [N] columns a score is read at: the last token, or every step's
    num_answer: int = 0  # tokens of the answer, without the one that ends it


@dataclass(frozen=True, slots=True)
class TextBatch:
    """Texts end to end, none of which sees another."""

    input_ids: Tensor  # [T]
    position_ids: Tensor  # [T]
    cu_seqlens: Tensor  # [S+1]
    reads: Tensor  # [R] columns, text by text
    groups: Sequence[int]  # [S] which group (pair, ranking, single text) each text is of
    counts: Sequence[int]  # [S] scores read of each text


class TextEncoder:
    """Texts of one reward model, with its tokenizer and its own way of asking."""

    def __init__(self, tokenizer: Any, card: Card, *, pad_id: int | None) -> None:
        self.prompter = Prompter(tokenizer, PromptsConfig(**card.prompts))
        self.card, self.pad_id = card, pad_id
        self.end = self._end() if card.eos_id is None else [card.eos_id]

    def answer(self, prompt: Prompt, response: str) -> Text:
        """Prompt, answer and end token; BadRow where that is too long.

        What an answer spells out is never a special token. The score is read where transformers reads it: at
        the last token that is no padding.
        """
        said = self.prompter.inert_ids(response)
        ids = [*self._asked(prompt), *said, *self.end]
        last = next((i for i in range(len(ids) - 1, -1, -1) if ids[i] != self.pad_id), len(ids) - 1)
        return self._checked(Text(ids, [last], len(said)))

    def steps(self, prompt: Prompt, steps: Sequence[str]) -> Text:
        """Prompt and steps, each with its separator, then the end token; read at each step's last token."""
        ids = list(self._asked(prompt))
        num_asked, reads = len(ids), []
        for piece in pieces(steps, self.card.separator):
            ids += self.prompter.inert_ids(piece)
            reads.append(len(ids) - 1)
        if len(set(reads)) < len(reads):
            raise BadRow("has a step without a token in this model's vocabulary")
        return self._checked(Text([*ids, *self.end], reads, len(ids) - num_asked))

    def _end(self) -> list[int]:
        """What follows an answer where the card does not say: what the chat template writes, or EOS."""
        tokenizer, mark = self.prompter.tokenizer, "here is the answer"
        if self.prompter.uses_chat:
            turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": mark}]
            whole = str(tokenizer.apply_chat_template(turns, tokenize=False))
            if mark in whole:
                return list(tokenizer.encode(whole.rpartition(mark)[2], add_special_tokens=False))
        return [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]

    def _asked(self, prompt: Prompt) -> list[int]:
        problem = prompt if isinstance(prompt, Problem) else Problem("of a row", prompt)
        return self.prompter.token_ids(problem)

    def _checked(self, text: Text) -> Text:
        if self.card.max_length and len(text.token_ids) > self.card.max_length:
            raise BadRow(
                f"has {len(text.token_ids)} tokens, more than the reward model's max_length = "
                f"{self.card.max_length}"
            )
        return text


def split_steps(response: str, separator: str) -> list[str]:
    """An answer's steps without their separators, blank ones left out."""
    return [step for step in response.split(separator) if step.strip()]


def pieces(steps: Sequence[str], separator: str) -> list[str]:
    """Each step with exactly one separator at its end; a space keeps words of neighbours apart.

    Steps cut out of an answer by `split_steps` keep the blanks they began with, so that an answer and the
    same steps given one by one read the same.
    """
    done: list[str] = []
    for step in steps:
        body = step.removesuffix(separator)
        apart = done and separator.strip() and body[:1].strip()
        done.append(f"{' ' if apart else ''}{body}{separator}")
    return done


def lay_out(groups: Sequence[Sequence[Text]], *, max_tokens: int) -> list[TextBatch]:
    """Groups of texts as batches of at most `max_tokens` tokens, longest first; a group is never cut.

    A group longer than `max_tokens` raises BadRow.
    """
    sizes = [sum(len(text.token_ids) for text in group) for group in groups]
    if sizes and max(sizes) > max_tokens:
        raise BadRow(
            f"has {max(sizes)} tokens in all its answers, more than policy.tokens_per_batch = {max_tokens}"
        )
    return [_batch(groups, members) for members in first_fit(sizes, max_tokens, what="a row's answers")]


def _batch(groups: Sequence[Sequence[Text]], members: Sequence[int]) -> TextBatch:
    ids: list[int] = []
    positions: list[int] = []
    bounds, reads, owners, counts = [0], [], [], []
    for index in members:
        for text in groups[index]:
            reads += [bounds[-1] + column for column in text.reads]
            ids += text.token_ids
            positions += range(len(text.token_ids))
            bounds.append(len(ids))
            owners.append(index)
            counts.append(len(text.reads))
    return TextBatch(
        input_ids=torch.tensor(ids),
        position_ids=torch.tensor(positions),
        cu_seqlens=torch.tensor(bounds, dtype=torch.int32),
        reads=torch.tensor(reads, dtype=torch.long),
        groups=owners,
        counts=counts,
    )
