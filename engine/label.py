"""`verigrad label RECIPE`: AI feedback; rows come out labelled by a judge, for prefer, reward and sft.

    row -> answers (its own, or sampled) -> questions -> judgements -> labels.jsonl

Rows are taken in chunks of `rollout.groups_per_step`. Every judgement is on disk as it arrives; killed at any
moment, the same command goes on and asks nothing twice that was answered.
"""

import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch

from verigrad.engine import label_rows, model_files
from verigrad.engine.assembly import open_sampler
from verigrad.engine.config import Config, ConfigError
from verigrad.engine.interrupt import Interrupt
from verigrad.engine.judging import open_judge
from verigrad.engine.label_rows import Item
from verigrad.engine.label_run import Judgements, LabelRun
from verigrad.engine.label_tasks import Outcome, Plan, Tasks
from verigrad.engine.policy import find_device
from verigrad.engine.prompts import Prompter
from verigrad.engine.rollout import Sampler, SamplingParams
from verigrad.engine.run import RunError
from verigrad.engine.sample import completion_of
from verigrad.engine.schema import Metrics
from verigrad.engine.screen import Screen, relative
from verigrad.engine.sft_rows import Encoder
from verigrad.verifiers.base import Problem
from verigrad.verifiers.judge_base import Judge, Question, Reply

INTERRUPTED = 130
LEAST_JUDGED = 20  # judgements, or pairs in both orders, before a share of them says anything
COUNTED = ("judgements", "failed", "unread", "pairs", "both_orders", "agreed", "ties", "first", "equal",
           "of_labelled", "as_labelled", "revised")  # fmt: skip


def label(cfg: Config, screen: Screen) -> int:
    """Label every row asked for, going on where an earlier start ended; returns the exit status."""
    torch.manual_seed(cfg.train.seed)
    with LabelRun(cfg) as run:
        tell(run, screen)
        if run.done:
            screen.say(f"{relative(run.labels)} is already there; nothing left to do")
            return show(run, screen)
        find_device(cfg)
        given = label_rows.read(cfg)
        if given.num_skipped:
            run.note(f"{given.num_skipped} malformed rows skipped, the first: {given.first_skipped}")
        size = cfg.rollout.groups_per_step
        chunks = [given.items[start : start + size] for start in range(0, len(given.items), size)]
        with Interrupt() as interrupt:
            facts = sample_missing(cfg, run, screen, chunks, interrupt)
            if facts is None:
                return INTERRUPTED
            judgements = run.open_judgements()
            with ExitStack() as closing:
                with run.timed("start"):
                    opening = open_judge(cfg, spent=judgements.spent, progress=screen.progress)
                    judge = closing.enter_context(opening)
                tasks = Tasks(cfg, given, judge.special_tokens)
                identity = {key: value for key, value in judge.identity.items() if key != "url"}
                run.record_environment(
                    data=given.fingerprint, judge=identity, prompt_hash=tasks.templates, **facts
                )
                if run.first_step > 1:
                    screen.say(f"resuming after chunk {run.first_step - 1} of {len(chunks)}")
                for step in range(run.first_step, len(chunks) + 1):
                    with run.timed("total"):
                        metrics = label_chunk(cfg, run, tasks, judge, judgements, chunks[step - 1], step)
                    show_chunk(run.log_step(step, metrics), screen, len(chunks))
                    tell(run, screen)
                    if interrupt.asked and step < len(chunks):
                        screen.say(f"stopped after chunk {step}; run the same command again to go on")
                        return INTERRUPTED
        run.join_parts(len(chunks))
        return show(run, screen)


# Answers ---------------------------------------------------------------------------------------------------


def sample_missing(
    cfg: Config, run: LabelRun, screen: Screen, chunks: Sequence[Sequence[Item]], interrupt: Interrupt
) -> dict[str, Any] | None:
    """Sample answers to the rows that bring none, chunk by chunk, before the judge needs the device.

    Returns what environment.json is to hold of the model that answers; None when it was interrupted.
    """
    if all(item.answers is not None for chunk in chunks for item in chunk):
        return {}
    if not cfg.policy.model:
        lacking = next(item for chunk in chunks for item in chunk if item.answers is None)
        raise ConfigError(
            f"row {lacking.id} has no answers (chosen and rejected, responses, or completion), and "
            "policy.model is empty, so none can be sampled; set policy.model"
        )
    model = model_files.fetch(cfg, progress=screen.progress)
    prompter = Prompter(model.tokenizer, cfg.prompts)
    facts = {"model": model.fingerprint, "prompts": prompter.template_hash}
    todo = [step for step in range(1, len(chunks) + 1) if run.read_part("answers", step) is None]
    todo = [step for step in todo if step >= run.first_step]
    if not todo:
        return facts
    encoder = Encoder(prompter, eos_ids=model.eos_ids, max_length=sys.maxsize)
    with open_sampler(cfg, model.folder, model, prompter, run) as sampler:
        sampler.policy_version = 0
        for step in todo:
            with run.timed("rollout"):
                rows = sample_chunk(cfg, sampler, encoder, chunks[step - 1], step)
            run.write_part("answers", step, rows)
            done = todo.index(step) + 1
            screen.progress(f"answers {done}/{len(todo)}", done / len(todo))
            if interrupt.asked:
                screen.say("stopped while sampling answers; run the same command again to go on")
                return None
    return facts


def sample_chunk(
    cfg: Config, sampler: Sampler, encoder: Encoder, items: Sequence[Item], step: int
) -> list[dict[str, Any]]:
    """Different whole answers to each row that brings none; an answer without an end is no answer."""
    lacking = [item for item in items if item.answers is None]
    problems = [Problem(item.id, item.prompt) for item in lacking]
    accept = encoder.prompter.refusal_above(cfg.rollout.max_prompt_tokens)
    for problem in problems:
        if why := accept(problem):
            raise ConfigError(f"row {problem.id} of {cfg.data.path}: {why}")
    params = SamplingParams(cfg.rollout.temperature, cfg.rollout.max_tokens, tuple(cfg.rollout.stop))
    num = 1 if cfg.label.task == "revise" else cfg.label.num_samples
    rows = []
    for position, group in sampler.sample(
        problems, params, group_size=num, seed=(cfg.train.seed, "label", step)
    ):
        whole = [rollout for rollout in group.rollouts if not rollout.truncated]
        texts = [text for rollout in whole if (text := completion_of(rollout, encoder)) is not None]
        rows.append(
            {
                "row": lacking[position].index,
                "answers": list(dict.fromkeys(texts)),
                "left_out": num - len(texts),
                "seeds": [rollout.seed for rollout in group.rollouts],
            }
        )
    return sorted(rows, key=lambda row: int(row["row"]))


def with_answers(run: LabelRun, items: Sequence[Item], step: int) -> list[Item]:
    """The rows of a chunk, sampled answers put in."""
    sampled = {row["row"]: row["answers"] for row in run.read_part("answers", step) or ()}
    return [
        item if item.answers is not None else replace(item, answers=tuple(sampled[item.index]))
        for item in items
    ]


# Judgements ------------------------------------------------------------------------------------------------


def label_chunk(
    cfg: Config,
    run: LabelRun,
    tasks: Tasks,
    judge: Judge,
    judgements: Judgements,
    items: Sequence[Item],
    step: int,
) -> Metrics:
    """Judge one chunk and record its labels; a sick judge ends the run before they are."""
    items = with_answers(run, items, step)
    answered = [item for item in items if item.answers]
    with run.timed("judge"):
        outcomes, replies = judge_all(tasks, judge, judgements, answered, step)
    counts = sum((outcome.counts for outcome in outcomes), Counter[str]())
    require_healthy(cfg, run, counts, last=step * cfg.rollout.groups_per_step >= len(tasks.given.items))
    rows = [row for outcome in outcomes for row in outcome.rows]
    run.write_part("labels", step, rows)
    run.count_tokens(sum(reply.tokens_out for reply in replies))
    undecided = counts["failed"] + counts["unread"]
    return {
        "num_rows": float(len(items)),
        "num_labels": float(len(rows)),
        **{f"num_{name}": float(counts[name]) for name in COUNTED},
        "undecided_frac": undecided / max(1, counts["judgements"]),
        "agreement": counts["agreed"] / counts["both_orders"] if counts["both_orders"] else math.nan,
        "first_frac": counts["first"] / (counts["pairs"] * (1 + cfg.judge.swap))
        if counts["pairs"]
        else math.nan,
        "tokens_in": float(sum(reply.tokens_in for reply in replies)),
        "tokens_out": float(sum(reply.tokens_out for reply in replies)),
        "cost": sum(reply.cost for reply in replies),
    }


def judge_all(
    tasks: Tasks, judge: Judge, judgements: Judgements, items: Sequence[Item], step: int
) -> tuple[list[Outcome], list[Reply]]:
    """Every row's plan to its end: all rows ask at the same time, wave after wave."""
    outcomes: dict[int, Outcome] = {}
    waiting: list[tuple[Item, Plan, Sequence[Question]]] = []
    every: list[Reply] = []

    def advance(item: Item, plan: Plan, replies: Sequence[Reply] | None) -> None:
        try:
            questions = next(plan) if replies is None else plan.send(replies)
        except StopIteration as ended:
            outcomes[item.index] = ended.value
        else:
            waiting.append((item, plan, questions))

    for item in items:
        advance(item, tasks.plan(item), None)
    while waiting:
        wave, waiting = waiting, []
        replies = ask(judge, judgements, [(item, q) for item, _, questions in wave for q in questions], step)
        every += replies
        start = 0
        for item, plan, questions in wave:
            advance(item, plan, replies[start : start + len(questions)])
            start += len(questions)
    return [outcomes[item.index] for item in items], every


def ask(
    judge: Judge, judgements: Judgements, questions: Sequence[tuple[Item, Question]], step: int
) -> list[Reply]:
    """Replies from disk where there are, else from the judge; each is on disk as it comes."""
    replies = [judgements.known(item.index, question) for item, question in questions]
    missing = [position for position, reply in enumerate(replies) if reply is None]

    def record(number: int, reply: Reply) -> None:
        item, question = questions[missing[number]]
        replies[missing[number]] = reply
        if not reply.fatal or reply.cost:
            judgements.record(item.index, question, reply, id=item.id, step=step)

    new = judge.ask([questions[position][1] for position in missing], on_reply=record)
    if fatal := next((reply.error for reply in new if reply.fatal), ""):
        again = "run the same command again to go on: what was answered is kept"
        raise RunError(f"the judge cannot go on: {fatal}; put that right and {again}")
    return [reply for reply in replies if reply is not None]


def require_healthy(cfg: Config, run: LabelRun, counts: Counter[str], *, last: bool) -> None:
    """Raise RunError when the judge fails too often, or goes by the order; counted over the whole run."""
    total = Counter(counts)
    for row in run.metrics():
        total += Counter({name: int(row[f"num_{name}"]) for name in COUNTED})
    limits, undecided = cfg.judge, total["failed"] + total["unread"]
    if total["judgements"] >= (1 if last else LEAST_JUDGED):
        share = undecided / total["judgements"]
        if share > limits.max_undecided_frac:
            raise RunError(
                f"{share:.0%} of {total['judgements']} judgements are undecided ({total['failed']} failed, "
                f"{total['unread']} could not be read), more than judge.max_undecided_frac = "
                f"{limits.max_undecided_frac:g}; see `error` and `raw` in {run.folder}/judgements.jsonl; "
                "then run the same command again, or another judge with run.folder=NEW"
            )
    if total["both_orders"] >= LEAST_JUDGED:
        share = total["agreed"] / total["both_orders"]
        if share < limits.min_agreement:
            raise RunError(
                f"the judge chose the same answer in both orders for {share:.0%} of {total['both_orders']} "
                f"pairs, less than judge.min_agreement = {limits.min_agreement:g}: it goes by the order; use "
                "another judge, judge.reason = true, or label.few_shot"
            )


# Screen ----------------------------------------------------------------------------------------------------


def tell(run: LabelRun, screen: Screen) -> None:
    """Show what the run has noted since the last look."""
    for note in run.take_notes():
        screen.say(f"note: {note}")


def show_chunk(row: dict[str, Any], screen: Screen, num_chunks: int) -> None:
    """One chunk on the bar."""
    undecided = f"  UNDECIDED {row['undecided_frac']:.0%}" if row["undecided_frac"] else ""
    cost = f"  cost {row['cost']:.4f}" if row["cost"] else ""
    facts = f"{row['num_labels']:.0f} labels of {row['num_rows']:.0f} rows{undecided}{cost}"
    screen.progress(f"chunk {row['step']}/{num_chunks}  {facts}", row["step"] / num_chunks)


def show(run: LabelRun, screen: Screen) -> int:
    """Print the table at the end, and return exit status 0."""
    metrics = run.metrics()
    total = {name: sum(row[f"num_{name}"] for row in metrics) for name in (*COUNTED, "rows", "labels")}
    judged = max(1.0, total["judgements"])
    rows = [
        ("rows", f"{total['rows']:,.0f}"),
        ("judgements", f"{total['judgements']:,.0f}"),
        (
            "undecided",
            f"{(total['failed'] + total['unread']) / judged:.1%} ({total['failed']:.0f} failed, "
            f"{total['unread']:.0f} could not be read)",
        ),
    ]
    if total["both_orders"]:
        rows.append(("same in both orders", f"{total['agreed'] / total['both_orders']:.1%} of the pairs"))
    if total["ties"]:
        rows.append(("ties", f"{total['ties']:,.0f}"))
    if total["of_labelled"]:
        rows.append(("as the rows' own labels", f"{total['as_labelled'] / total['of_labelled']:.1%}"))
    if run.cfg.label.task == "revise":
        rows.append(("revisions that changed something", f"{total['revised']:,.0f}"))
    if cost := sum(row["cost"] for row in metrics):
        rows.append(("cost", f"{cost:.4f}"))
    rows += [("labels", f"{total['labels']:,.0f} in {relative(run.labels)}")]
    screen.summary(rows, title=f"{run.folder.name}: {json.dumps(run.cfg.label.task)}, {len(metrics)} chunks")
    return 0
