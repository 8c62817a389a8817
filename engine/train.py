"""The training loop: reinforcement learning from verifiable rewards, top to bottom.

    problem -> prompt -> group of rollouts -> verdicts -> advantages -> packed batch -> loss
            -> optimizer step -> weights into the sampler, proved -> record

Each arrow is one call below and one file in this folder. Nothing else decides what happens in a step: to
change a step, change this file. How the parts come about is in assembly.py.
"""

from itertools import pairwise

import torch

from verigrad.engine import advantage, critic, dynamic_sampling, summary
from verigrad.engine.assembly import Loop, open_loop, state_of
from verigrad.engine.config import Config
from verigrad.engine.evaluation import evaluate, require_column
from verigrad.engine.interrupt import Interrupt
from verigrad.engine.pack import pack, pack_stats
from verigrad.engine.policy import Update, combine
from verigrad.engine.rollout import SamplingParams
from verigrad.engine.run import Run, RunError
from verigrad.engine.schema import Metrics, ScoredGroup, VerifiedGroup, staleness
from verigrad.engine.screen import Screen

INTERRUPTED = 130


def train(cfg: Config, screen: Screen) -> int:
    """Train to `train.num_steps`, resuming from the newest whole checkpoint if the run folder holds one.

    Killed at any moment and started again, a run records the same metrics as one that never was (all but
    times). Returns the exit status.
    """
    torch.manual_seed(cfg.train.seed)
    with Run(cfg) as run:
        tell(run, screen)
        if run.first_step > cfg.train.num_steps:
            screen.say(f"{cfg.run.folder} already holds all {cfg.train.num_steps} steps; nothing left to do")
            return summary.show(run, screen)
        with open_loop(cfg, run, screen) as loop, Interrupt() as interrupt:
            tell(run, screen)
            if run.first_step == 1 and cfg.eval.every:
                evaluate_all(loop, run, screen, cfg, step=0)
            for step in range(run.first_step, cfg.train.num_steps + 1):
                last = step == cfg.train.num_steps
                with run.timed("total"):
                    metrics = train_step(loop, run, cfg, step)
                screen.step(run.log_step(step, metrics), cfg.train.num_steps)
                loop.sync.require_match(metrics)
                if cfg.eval.every and (step % cfg.eval.every == 0 or last):
                    evaluate_all(loop, run, screen, cfg, step=step)
                stopping = interrupt.asked and not last  # read once: a signal may come between two looks
                paused, tripped = loop.scorer.watch.must_pause and not last, loop.monitor.trip is not None
                if stopping or paused or tripped or last or step % cfg.run.save_every == 0:
                    with run.timed("save"):
                        saved = run.save(step, state_of(loop), loop.save_model)
                tell(run, screen)
                if loop.nonfinite_in_row >= cfg.train.max_nonfinite_steps:
                    raise RunError(
                        f"{loop.nonfinite_in_row} steps in a row had a non-finite loss or gradient and were "
                        f"skipped; their rollouts are in {cfg.run.folder}/rollouts. Look there for extreme "
                        "log-probabilities, or start a new run with a lower optim.lr"
                    )
                if tripped:
                    raise loop.monitor.ended(saved=saved)
                if paused:
                    raise loop.scorer.watch.paused(step=step, saved=saved)
                if stopping:
                    done = "saved" if saved else "NOT saved, see above"
                    screen.say(f"stopped after step {step}, {done}; run the same command again to go on")
                    return INTERRUPTED
        if not saved:
            raise RunError(
                "the last checkpoint could not be written; free space, then run the same command again"
            )
        return summary.show(run, screen)


def train_step(loop: Loop, run: Run, cfg: Config, step: int) -> Metrics:
    """One step, and what was measured. Its rollouts are on disk before anything is done with them."""
    groups, kept, waited = collect(loop, run, cfg, step)
    trained_on = [groups[position] for position in kept]
    greedy = greedy_groups(loop, run, trained_on, cfg, step) if loop.algorithm.greedy else []
    scored = advantage.score(
        trained_on,
        loop.algorithm.advantage,
        shape=loop.algorithm.shape,
        greedy=[group.verdicts[0].reward for group in greedy] if greedy else None,
    )
    run.log_rollouts(step, [*groups, *greedy], dict(zip(kept, scored, strict=True)))
    loop.scorer.require_decided(groups)
    loop.monitor.look(step, groups)
    metrics = dynamic_sampling.group_stats(groups, trained_on)
    metrics |= loop.scorer.step_health(groups, note=run.note)
    metrics |= {**staleness(trained_on, now=loop.policy_version), **waited}
    metrics |= {f"curriculum/{name}": value for name, value in loop.problems.metrics().items()}
    with run.timed("train"):
        loop.sampler.engine.release()
        metrics |= update(loop, scored, cfg, step)
        moved = len(scored) * cfg.rollout.group_size if step > cfg.critic.warmup_steps else 0
        loop.coefs = loop.algorithm.adapt(loop.coefs, metrics, moved)
        if (every := cfg.algorithm.ref_sync_every) and step % every == 0:
            loop.policy.move_reference()
        loop.sampler.engine.reclaim()
    metrics |= loop.monitor.observe(step, groups, metrics)
    with run.timed("sync"):
        loop.policy_version += 1
        metrics |= loop.sync.push(loop.policy_version)
    return metrics | {"policy_version": float(loop.policy_version), "keep_rate": float(loop.keep_rate)}


def collect(loop: Loop, run: Run, cfg: Config, step: int) -> tuple[list[VerifiedGroup], list[int], Metrics]:
    """Sample and judge until `groups_per_step` groups are worth training on, or the budget is spent.

    Dropped groups are replaced by other problems (DAPO's dynamic sampling). A round's groups are all waited
    for and taken in the order their problems were drawn: taking the first to finish would favour short
    answers. Returns every group, the positions of the kept, and where sampling runs ahead of training (see
    flow.py) its metrics.
    """
    if loop.flow is not None:
        groups, kept, waited = loop.flow.take(run.timed)
        loop.keep_rate = loop.keep_rate.update(len(kept), len(groups))
        return groups, kept, waited
    wanted = cfg.rollout.groups_per_step
    refills = cfg.dynamic_sampling.enabled
    cap = (
        dynamic_sampling.sampling_cap(wanted, oversample=cfg.dynamic_sampling.oversample)
        if refills
        else wanted
    )
    params = SamplingParams(cfg.rollout.temperature, cfg.rollout.max_tokens, tuple(cfg.rollout.stop))
    groups, kept = [], []
    while len(kept) < wanted and len(groups) < cap:
        missing = wanted - len(kept)
        num = dynamic_sampling.num_to_sample(missing, keep_rate=loop.keep_rate, sampled=len(groups), cap=cap)
        problems = loop.problems.next_batch(num)
        seed = (cfg.train.seed, step, len(groups))
        with run.timed("rollout"):  # verifying overlaps sampling ...
            arriving = loop.sampler.sample(problems, params, group_size=cfg.rollout.group_size, seed=seed)
            pending = loop.scorer.submit(arriving)
        with run.timed("verify"):  # ... and this is what is left of it
            judged = loop.scorer.wait(pending)
        keep = [len(groups) + i for i, group in enumerate(judged) if loop.algorithm.keep(group)]
        loop.problems.observe(judged)
        loop.keep_rate = loop.keep_rate.update(len(keep), len(judged))
        groups += judged
        kept += keep
        if loop.scorer.too_undecided(groups):
            break  # the verifier is broken; more samples would not mend it
    return groups, kept[:wanted], {}


def greedy_groups(
    loop: Loop, run: Run, groups: list[VerifiedGroup], cfg: Config, step: int
) -> list[VerifiedGroup]:
    """One greedy rollout of each group's problem, judged: the baseline of an advantage that asks for it."""
    params = SamplingParams(0.0, cfg.rollout.max_tokens, tuple(cfg.rollout.stop))
    problems = [group.problem for group in groups]
    with run.timed("rollout"):
        seed = (cfg.train.seed, step, "greedy")
        pending = loop.scorer.submit(loop.sampler.sample(problems, params, group_size=1, seed=seed))
    with run.timed("verify"):
        return loop.scorer.wait(pending)


def update(loop: Loop, scored: list[ScoredGroup], cfg: Config, step: int) -> Metrics:
    """`train.num_minibatches` optimizer steps over the kept groups, one each if there are fewer groups.

    A part without a token to train on takes no step; with no group kept there is no step and no change. A
    critic, where there is one, learns beside the policy, and in its first steps alone.
    """
    algorithm, decoupled = loop.algorithm, cfg.algorithm.old_logprobs == "trainer"
    num = max(1, min(cfg.train.num_minibatches, len(scored)))
    cuts = [len(scored) * index // num for index in range(num + 1)]  # parts as equal as can be
    minibatches = [
        pack(
            scored[start:end],
            algorithm.aggregate,
            max_tokens=cfg.policy.tokens_per_batch,
            overlong_filter=cfg.algorithm.overlong_filter,
            together=algorithm.together,
            share_prefixes=cfg.policy.share_prefixes,
            first_group=start,
            apart=loop.policy.skips(loop.coefs),
        )
        for start, end in pairwise(cuts)
    ]
    frozen = [
        # The first minibatch's own forward pass gives its old log-probabilities, unless needed before.
        loop.policy.frozen(
            batches, with_old=decoupled and (index > 0 or bool(algorithm.needs)), needs=algorithm.needs
        )
        for index, batches in enumerate(filter(None, minibatches))
    ]
    if loop.critic is not None:
        frozen = loop.critic.values(frozen)
    if algorithm.place is not None:
        placed = iter(algorithm.place([batch for batches in frozen for batch in batches], loop.coefs))
        frozen = [[next(placed) for _ in batches] for batches in frozen]
    frozen, selected = algorithm.select(frozen)
    updates: list[Update] = []
    learned: list[Update] = []
    for index, batches in enumerate(frozen):
        joined = loop.critic.joined(batches, step=step) if loop.critic else None
        given = batches, algorithm.loss, loop.coefs
        if step <= cfg.critic.warmup_steps:
            updates.append(critic.look(loop.policy, *given, first=index == 0))
        else:
            updates.append(loop.policy.update(*given, step=step, first=index == 0, beside=joined))
        if loop.critic is not None:
            applied = updates[-1].applied
            learned.append(loop.critic.update(batches, step=step, joined=joined, applied=applied))
    seen = critic.measure(frozen, learned) if loop.critic else {}
    skipped = sum(not done.finite for done in [*updates, *learned])
    loop.nonfinite_in_row = loop.nonfinite_in_row + 1 if skipped else 0
    coefs = {"kl_coef": loop.coefs.kl, "entropy_coef": loop.coefs.entropy}
    packed = pack_stats(minibatches, cfg.policy)
    return {**combine(updates), **seen, **selected, **packed, **coefs, "skipped_updates": float(skipped)}


def tell(run: Run, screen: Screen) -> None:
    """Show what the run has noted since the last look."""
    for note in run.take_notes():
        screen.say(f"note: {note}")


def evaluate_all(loop: Loop, run: Run, screen: Screen, cfg: Config, *, step: int) -> None:
    """Evaluate on every held-out set and record it."""
    require_column(cfg.eval.by, loop.evals)
    for name, problems in loop.evals.items():
        with run.timed("eval"):
            evaluation = evaluate(name, problems, loop.sampler, loop.judges.of(name), cfg=cfg, step=step)
        run.log_eval(evaluation)
        screen.evaluation(evaluation)
        screen.samples(evaluation.groups)
