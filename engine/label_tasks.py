"""What a judge is asked about a row -> rows of labels.jsonl: preferences, scores, rubrics, revisions.

Each task is a generator: it yields the questions it wants answered next, is sent their replies, and returns
an Outcome. So all rows of a chunk ask at the same time, and a reply from disk is as good as a new one.
"""

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from verigrad.engine.label_rows import Item, ToLabel
from verigrad.engine.rollout import derive_seed
from verigrad.engine.settings import Config
from verigrad.verifiers import judge_prompts, judge_reading, rubric_criteria
from verigrad.verifiers.judge_base import Question, Reply
from verigrad.verifiers.judge_reading import Choice

Row = dict[str, Any]


@dataclass(slots=True)
class Outcome:
    """What came of one row."""

    rows: list[Row] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


Plan = Generator[Sequence[Question], Sequence[Reply], Outcome]


@dataclass(frozen=True, slots=True)
class Tasks:
    """Makes each row's plan."""

    cfg: Config
    given: ToLabel
    special_tokens: Sequence[str]  # of the judge

    def plan(self, item: Item) -> Plan:
        """What is asked about a row whose answers are there."""
        plans: dict[str, Callable[[Item], Plan]] = {
            "prefer": self.prefer,
            "score": self.score,
            "rubric": self.rubric,
            "revise": self.revise,
        }
        return plans[self.cfg.label.task](item)

    @property
    def templates(self) -> dict[str, str]:
        """Hashes of the wordings in use."""
        kinds = {"prefer": ("pair",), "score": ("score",), "rubric": ("criterion",),
                 "revise": ("critique", "revision")}  # fmt: skip
        return {
            kind: judge_prompts.template_hash(kind, reasons=self.cfg.judge.reason)
            for kind in kinds[self.cfg.label.task]
        }

    def prefer(self, item: Item) -> Plan:
        """Which of two answers is better, of each two that stand side by side: first and second, third and
        fourth, ...; equal ones are not asked about, and the same two only once."""
        outcome, answers = Outcome(), list(item.answers or ())
        every = [pair for pair in list(pairwise(answers))[::2] if pair[0] != pair[1]]
        outcome.counts["equal"] += len(answers) // 2 - len(every)
        times, pairs = Counter(map(frozenset, every)), dict[frozenset[str], tuple[str, str]]()
        for pair in every:
            pairs.setdefault(frozenset(pair), pair)
        for number, (same, (a, b)) in enumerate(pairs.items()):
            principle = self._principle(item, number)
            if not self.cfg.judge.swap and derive_seed(self.cfg.train.seed, "order", item.id, number) % 2:
                a, b = b, a  # asked in one order alone, which is drawn
            both = self._both_orders(item, a, b, principle)
            replies = yield both
            for question, reply in zip(both, replies, strict=True):
                self._count(outcome, question, reply)
            read = [judge_reading.choice_of(q, r) for q, r in zip(both, replies, strict=True)]
            told = judge_reading.preference(read[0], read[1] if len(read) > 1 else None)
            outcome.counts["pairs"] += 1
            outcome.counts["first"] += sum(isinstance(one, Choice) and one.chosen == "1" for one in read)
            if told.agreed is not None:
                outcome.counts["both_orders"] += 1
                outcome.counts["agreed"] += told.agreed
            if told.p_a is None:
                continue
            if not told.winner:
                outcome.counts["ties"] += 1
                if not self.cfg.label.keep_ties:
                    continue
            first = told.winner == "a" or (not told.winner and told.p_a >= 0.5)
            chosen, rejected = (a, b) if first else (b, a)
            if told.winner and item.chosen is not None:
                outcome.counts["of_labelled"] += 1
                outcome.counts["as_labelled"] += chosen == item.chosen
            row = {"chosen": chosen, "rejected": rejected, "p_chosen": told.p_a if first else 1 - told.p_a,
                   "tie": not told.winner, "agreed": told.agreed}  # fmt: skip
            outcome.rows += self._rows(times[same], item, row, both, replies, principle)
        return outcome

    def score(self, item: Item) -> Plan:
        """How good each answer is, from 1 to 10, as a likelihood-weighted mean."""
        outcome = Outcome()
        manner = {"reasons": self.cfg.judge.reason, **self._manner(item)}
        times = Counter(item.answers or ())  # equal answers are asked about once
        principles = [self._principle(item, number) for number in range(len(times))]
        questions = [
            judge_prompts.score(item.request, one, principle=by, **manner)
            for one, by in zip(times, principles, strict=True)
        ]
        replies = yield questions
        for answer, by, question, reply in zip(times, principles, questions, replies, strict=True):
            self._count(outcome, question, reply)
            choice = judge_reading.choice_of(question, reply)
            if isinstance(choice, str):
                continue
            score = judge_reading.expected_score(choice.probs)
            reward = judge_reading.reward_of_score(score)
            row = {"completion": answer, "score": score, "reward": reward, "label": reward > 0}
            outcome.rows += self._rows(times[answer], item, row, [question], [reply], by)
        return outcome

    def rubric(self, item: Item) -> Plan:
        """Every criterion by itself; an answer of which one is undecided has no reward."""
        outcome, criteria = Outcome(), item.criteria or self.given.criteria
        for answer, num_rows in Counter(item.answers or ()).items():
            questions = [
                judge_prompts.criterion(item.request, answer, criterion=one.text,
                                        reasons=self.cfg.judge.reason, **self._manner(item))
                for one in criteria
            ]  # fmt: skip
            replies = yield questions
            met: dict[str, bool] = {}
            for one, question, reply in zip(criteria, questions, replies, strict=True):
                self._count(outcome, question, reply)
                choice = judge_reading.choice_of(question, reply)
                if isinstance(choice, Choice):
                    met[one.text] = choice.chosen == "yes"
            if len(met) < len(criteria):
                continue
            reward = rubric_criteria.reward_of(criteria, list(met.values()))
            row = {"completion": answer, "reward": reward, "label": reward >= 0.5, "met": met}
            outcome.rows += self._rows(num_rows, item, row, questions, replies, "")
        return outcome

    def revise(self, item: Item) -> Plan:
        """Answer, critique by a drawn principle, revision, and again from there; the whole chain is kept."""
        outcome, first = Outcome(), (item.answers or ("",))[0]
        answer, chain, asked, told = first, [], list[Question](), list[Reply]()
        for number in range(self.cfg.label.revisions):
            principle = self._principle(item, number)
            manner = self._manner(item)
            question = judge_prompts.critique(item.request, answer, principle=principle, **manner)
            replies = yield [question]
            asked, told = [*asked, question], [*told, *replies]
            if (critique := self._written(outcome, question, replies[0])) is None:
                return outcome
            question = judge_prompts.revision(item.request, answer, critique, principle=principle, **manner)
            replies = yield [question]
            asked, told = [*asked, question], [*told, *replies]
            if (revision := self._written(outcome, question, replies[0])) is None:
                return outcome
            outcome.counts["revised"] += revision != answer
            chain.append({"principle": principle, "critique": critique, "revision": revision})
            answer = revision
        row = {"completion": answer, "first": first, "chain": chain}
        outcome.rows.append(self._row(item, row, asked, told, ""))
        return outcome

    def _written(self, outcome: Outcome, question: Question, reply: Reply) -> str | None:
        """A critique or revision without the thought before it; None where there is none."""
        self._count(outcome, question, reply)
        if reply.text is None:
            return None
        _, closed, after = reply.text.rpartition("</think>")
        said = (after if closed else reply.text).strip()
        if not said or "<think>" in said:
            outcome.counts["unread"] += 1
            return None
        return said

    def _both_orders(self, item: Item, a: str, b: str, principle: str) -> list[Question]:
        """A first and B first; without swapping, A first alone."""
        manner = {"principle": principle, "reasons": self.cfg.judge.reason, **self._manner(item)}
        orders = [(a, b), (b, a)] if self.cfg.judge.swap else [(a, b)]
        return [judge_prompts.pair(item.request, first, second, **manner) for first, second in orders]

    def _principle(self, item: Item, number: int) -> str:
        drawn = derive_seed(self.cfg.train.seed, "principle", item.id, item.index, number)
        return self.given.principles[drawn % len(self.given.principles)]

    def _manner(self, item: Item) -> dict[str, Any]:
        seed = derive_seed(self.cfg.train.seed, self.cfg.judge.seed, "judge", item.id)
        return {"special_tokens": self.special_tokens, "preface": self.given.preface, "seed": seed}

    def _count(self, outcome: Outcome, question: Question, reply: Reply) -> None:
        outcome.counts["judgements"] += 1
        outcome.counts["failed"] += reply.text is None
        if question.choices and reply.text is not None:
            unread = isinstance(judge_reading.choice_of(question, reply), str)
            outcome.counts["unread"] += unread

    def _rows(self, num: int, *of_row: Any) -> list[Row]:
        """A label for each of `num` equal answers; what the judge cost stands in the first."""
        first = self._row(*of_row)
        return [first, *({**first, "cost": 0.0} for _ in range(num - 1))]

    def _row(
        self, item: Item, label: Row, asked: Sequence[Question], told: Sequence[Reply], principle: str
    ) -> Row:
        """A label with what it stands on: principle, wording, raw judgements, costs."""
        prompt = item.prompt if isinstance(item.prompt, str) else [dict(message) for message in item.prompt]
        return {
            "prompt": prompt,
            **label,
            "problem_id": item.id,
            **({"principle": principle} if principle else {}),
            "prompt_hash": self.templates,
            "judgements": [{"question": q.key, "raw": r.text} for q, r in zip(asked, told, strict=True)],
            "cost": sum(reply.cost for reply in told),
        }
