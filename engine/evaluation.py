"""Held-out problems to an evaluation: scores with 95% intervals, and the rollouts they come from."""

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from verigrad.engine.config import Config, ConfigError
from verigrad.engine.intervals import Interval, maj_at_ks, mean_interval, pass_at_k
from verigrad.engine.rollout import Sampler, SamplingParams
from verigrad.engine.schema import Evaluation, Rollout, RolloutGroup, VerifiedGroup
from verigrad.engine.scoring import Scorer
from verigrad.engine.verifier_health import UndecidedError
from verigrad.verifiers.base import Problem, Verdict

NAN = float("nan")
UNKNOWN: Interval = (NAN, NAN, NAN)
NO_CATEGORY = "(none)"
Progress = Callable[[str, float], None]


def evaluate(
    data: str, problems: Sequence[Problem], sampler: Sampler, scorer: Scorer, *, cfg: Config, step: int
) -> Evaluation:
    """Sample and judge held-out problems as training does; UndecidedError if too few could be judged."""
    groups = attempt(data, problems, sampler, scorer, cfg=cfg)
    require_decided(data, groups, scorer)
    row = summarise(data, groups, step=step, ks=cfg.eval.pass_k, by=cfg.eval.by)
    return Evaluation(row | scorer.take_health(), groups)


def attempt(
    data: str,
    problems: Sequence[Problem],
    sampler: Sampler,
    scorer: Scorer,
    *,
    cfg: Config,
    progress: Progress | None = None,
) -> list[VerifiedGroup]:
    """Every problem's judged samples, in the problems' order.

    Seeds follow from each problem's id, so two evaluations differ by the weights alone, and another order,
    fewer problems or another name of the set change no sample of those they share.
    """
    num_samples, temperature = sampling_of(cfg, data)
    params = SamplingParams(temperature, cfg.rollout.max_tokens, tuple(cfg.rollout.stop))
    arriving = sampler.sample(
        problems,
        params,
        group_size=num_samples,
        seed=(cfg.train.seed, "eval"),
        names=[problem.id for problem in problems],
    )
    if progress is not None:
        arriving = _told(arriving, len(problems), lambda share: progress(f"{data}: sampling", share))
    return scorer.wait(scorer.submit(arriving))


def sampling_of(cfg: Config, data: str) -> tuple[int, float]:
    """Samples per problem and temperature of one set: its own, else those of [eval]."""
    own = cfg.data.evals.get(data)
    num_samples = own.num_samples if own else None
    temperature = own.temperature if own else None
    return (
        cfg.eval.num_samples if num_samples is None else num_samples,
        cfg.eval.temperature if temperature is None else temperature,
    )


def require_decided(data: str, groups: Sequence[VerifiedGroup], scorer: Scorer) -> None:
    """Raise UndecidedError when more than `verifier.max_undecided_frac` of the verdicts are undecided."""
    if not scorer.too_undecided(groups):
        return
    verdicts = [verdict for group in groups for verdict in group.verdicts]
    undecided = [verdict for verdict in verdicts if not verdict.decided]
    raise UndecidedError(
        f"evaluation {data}: verifier {scorer.name!r} could not decide {len(undecided)} of {len(verdicts)} "
        f"attempts (limit verifier.max_undecided_frac = {scorer.max_undecided_frac}); the first reason was: "
        f"{undecided[0].reason or 'none given'}. Mend the verifier, then run the same command again"
    )


def require_column(by: str, sets: Mapping[str, Sequence[Problem]]) -> None:
    """Raise ConfigError when no problem of any set has the column that is to sort them."""
    columns = {str(name) for problems in sets.values() for problem in problems for name in problem.meta}
    if by and sets and by not in columns:
        raise ConfigError(
            f"eval.by = {by!r}: no held-out problem has this column; they have "
            f"{', '.join(sorted(columns)) or 'none besides prompt and answer'}"
        )


def summarise(
    data: str, groups: Sequence[VerifiedGroup], *, step: int, ks: Sequence[int], by: str = ""
) -> dict[str, object]:
    """A row of eval.jsonl; undecided samples are left out of every score, and counted.

    NaN where there is nothing to tell it from: no decided sample, or too few of them for a k. Each k up to
    the number of samples is reported. With `by`, a column of the problems, every category has its scores.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    num_decided = sum(len(group.correctness) for group in groups)
    num_samples = max((len(group.rollouts) for group in groups), default=0)
    ks = [k for k in ks if k <= num_samples]
    row: dict[str, object] = {
        "step": step,
        "data": data,
        "num_problems": len(groups),
        "num_samples": num_samples,
        **scores_of(groups, ks),
        "truncated_frac": sum(rollout.truncated for rollout in rollouts) / max(1, len(rollouts)),
        "undecided_frac": (len(rollouts) - num_decided) / max(1, len(rollouts)),
        "completion_tokens_mean": sum(r.num_completion_tokens for r in rollouts) / max(1, len(rollouts)),
    }
    if categories := by_category(groups, by):
        row["by"] = {
            name: {"num_problems": len(some), **scores_of(some, ks)} for name, some in categories.items()
        }
    return row


def scores_of(groups: Sequence[VerifiedGroup], ks: Sequence[int]) -> dict[str, object]:
    """avg, pass@k and maj@k over problems, each with its 95% interval: `avg`, `avg_low`, `avg_high`, ..."""
    decided = [group.correctness for group in groups if group.correctness]
    avg = mean_interval(decided) if decided else UNKNOWN
    passes, majorities = dict.fromkeys(map(str, ks), UNKNOWN), dict.fromkeys(map(str, ks), UNKNOWN)
    votes = [maj_scores(group, ks) for group in groups]
    for k in ks:
        if right := [[pass_score(group, k)] for group in groups if len(group.correctness) >= k]:
            passes[str(k)] = mean_interval(right)
            majorities[str(k)] = mean_interval([[each[k]] for each in votes if k in each])
    scores: dict[str, object] = dict(zip(("avg", "avg_low", "avg_high"), avg, strict=True))
    for name, intervals in (("pass_at", passes), ("maj_at", majorities)):
        for place, end in enumerate(("", "_low", "_high")):
            scores[name + end] = {k: interval[place] for k, interval in intervals.items()}
    return scores


def avg_score(group: VerifiedGroup) -> float:
    """Mean reward of one problem's decided samples, of which there must be one."""
    return statistics.fmean(group.correctness)


def pass_score(group: VerifiedGroup, k: int) -> float:
    """Unbiased chance that k of one problem's decided samples hold a right one."""
    return pass_at_k(len(group.correctness), sum(is_right(verdict) for verdict in group.verdicts), k)


def maj_scores(group: VerifiedGroup, ks: Sequence[int]) -> dict[int, float]:
    """Chance that the majority of k decided samples is right, for each k there are enough of them for."""
    pairs = list(zip(group.rollouts, group.verdicts, strict=True))
    voters = [(vote_of(rollout, verdict), is_right(verdict)) for rollout, verdict in pairs if verdict.decided]
    enough = [k for k in ks if k <= len(voters)]
    return maj_at_ks([vote for vote, _ in voters], [float(right) for _, right in voters], enough)


def is_right(verdict: Verdict) -> bool:
    """Whether the verifier calls it right; a reward alone does not say so, weights and penalties move it."""
    return verdict.outcome == "right"


def vote_of(rollout: Rollout, verdict: Verdict) -> tuple[str, str] | None:
    """What an attempt votes for, or None.

    All right attempts vote together: the verifier has called them equal. The others vote by the answer as the
    verifier read it, else by their final text, thinking aside. What could not be parsed casts no vote.
    """
    if is_right(verdict):
        return ("right", "")
    if verdict.outcome == "unparseable":
        return None
    if verdict.extracted:
        return ("answer", verdict.extracted)
    text = rollout.attempt.final_text.strip()
    return ("text", text) if text else None


def by_category(groups: Sequence[VerifiedGroup], by: str) -> dict[str, list[VerifiedGroup]]:
    """The groups by their problem's value in column `by`, in order; {} where no problem has the column."""
    if not by or not any(by in group.problem.meta for group in groups):
        return {}
    values = {str(group.problem.meta.get(by, NO_CATEGORY)) for group in groups}
    found: dict[str, list[VerifiedGroup]] = {name: [] for name in sorted(values, key=_rank)}
    for group in groups:
        found[str(group.problem.meta.get(by, NO_CATEGORY))].append(group)
    return found


def _rank(value: str) -> tuple[bool, float, str]:
    """Numbers by their size, then words."""
    try:
        number = float(value)
    except ValueError:
        return True, 0.0, value
    return number != number, number if number == number else 0.0, value


def _told(
    arriving: Iterable[tuple[int, RolloutGroup]], total: int, progress: Callable[[float], None]
) -> Iterator[tuple[int, RolloutGroup]]:
    for count, item in enumerate(arriving, 1):
        yield item
        progress(count / total)
