"""Held-out problems to an evaluation: scores with 95% intervals, and the rollouts they come from."""

import math
import statistics
from collections.abc import Callable, Sequence

from verigrad.engine.config import Config
from verigrad.engine.intervals import maj_at_k, mean_interval, pass_at_k
from verigrad.engine.rollout import Sampler, SamplingParams
from verigrad.engine.schema import Evaluation, VerifiedGroup
from verigrad.engine.scoring import Scorer
from verigrad.verifiers.base import Problem


def evaluate(
    data: str, problems: Sequence[Problem], sampler: Sampler, scorer: Scorer, *, cfg: Config, step: int
) -> Evaluation:
    """Sample `eval.num_samples` completions of each problem and judge them, as training does.

    The seeds do not depend on the step: two evaluations differ by the weights alone.
    """
    params = SamplingParams(cfg.eval.temperature, cfg.rollout.max_tokens, tuple(cfg.rollout.stop))
    seed = (cfg.train.seed, "eval", data)
    arriving = sampler.sample(problems, params, group_size=cfg.eval.num_samples, seed=seed)
    groups = scorer.wait(scorer.submit(arriving))
    scorer.require_decided(groups)
    return Evaluation(summarise(data, groups, step=step, ks=cfg.eval.pass_k), groups)


def summarise(
    data: str, groups: Sequence[VerifiedGroup], *, step: int, ks: Sequence[int]
) -> dict[str, object]:
    """A row of eval.jsonl; undecided samples are left out of every score, and counted.

    NaN where there is nothing to tell it from: no decided sample, or too few of them for a k.
    """
    decided = [group for group in groups if group.correctness]
    scores = [group.correctness for group in decided]
    avg, low, high = mean_interval(scores) if scores else (math.nan, math.nan, math.nan)
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    num_decided = sum(len(group.correctness) for group in groups)
    return {
        "step": step,
        "data": data,
        "num_problems": len(groups),
        "num_samples": max((len(group.rollouts) for group in groups), default=0),
        "avg": avg,
        "avg_low": low,
        "avg_high": high,
        "pass_at": {str(k): _mean_over(decided, _pass_at, k) for k in ks},
        "maj_at": {str(k): _mean_over(decided, _maj_at, k) for k in ks},
        "truncated_frac": sum(rollout.truncated for rollout in rollouts) / max(1, len(rollouts)),
        "undecided_frac": (len(rollouts) - num_decided) / max(1, len(rollouts)),
    }


def _mean_over(
    groups: Sequence[VerifiedGroup], score: Callable[[VerifiedGroup, int], float], k: int
) -> float:
    scores = [score(group, k) for group in groups if len(group.correctness) >= k]
    return statistics.fmean(scores) if scores else math.nan


def _pass_at(group: VerifiedGroup, k: int) -> float:
    rewards = group.correctness
    return pass_at_k(len(rewards), sum(reward >= 1.0 for reward in rewards), k)


def _maj_at(group: VerifiedGroup, k: int) -> float:
    """Majority over answers that read the same, thinking aside; an unparseable one casts no vote."""
    voters = [
        (None if verdict.outcome == "unparseable" else rollout.attempt.final_text.strip(), verdict.reward)
        for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True)
        if verdict.reward is not None
    ]
    return maj_at_k([vote for vote, _ in voters], [reward for _, reward in voters], k)
