"""What an algorithm can be made of, by name, with the numbers each part starts from; imports no torch.

A row of ROWS names an advantage, a loss and an aggregation. algorithms.py joins the functions of these names
to them; a part's settings are its function's keywords.
docs/algorithms/ has a page for each.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Numbers = Mapping[str, float]
"""Setting of [algorithm] -> the value it has where the recipe is silent."""


@dataclass(frozen=True, slots=True)
class AdvantagePart:
    """Rewards to advantages."""

    says: str
    source: str
    settings: Numbers = field(default_factory=dict)
    group_baseline: bool = True  # compares the rollouts of a group, so needs at least two
    per_token: Literal["", "whiten", "optimal_baseline", "gae"] = ""  # what is done once it stands on tokens
    greedy: bool = False  # needs one greedy rollout of each problem
    parts: bool = False  # reads the verdict's parts, not its reward
    binary: bool = False  # reads right or wrong, not the reward's size


@dataclass(frozen=True, slots=True)
class LossPart:
    """Log-probabilities and advantages to a loss of each token."""

    says: str
    source: str
    settings: Numbers = field(default_factory=dict)
    on_policy_identity: bool = True  # at ratio 1 its gradient is -advantage
    one_advantage: bool = False  # shares a rollout's loss among its tokens: they must agree on the advantage
    pairs: bool = False  # compares a group's rollouts in pairs, by the sign of their advantages; has no ratio
    reference: bool = False  # compares with the reference's log-probabilities, also without a KL term


@dataclass(frozen=True, slots=True)
class Row:
    """One value of algorithm.name."""

    advantage: str
    loss: str
    aggregation: str
    says: str
    source: str
    dynamic_sampling: bool = False
    settings: Numbers = field(default_factory=dict)  # where the row's numbers are not its parts'


CLIP: Numbers = {"clip_low": 0.2, "clip_high": 0.2}

ADVANTAGES: Mapping[str, AdvantagePart] = {
    "group_norm": AdvantagePart(
        "reward minus its group's mean, over its standard deviation", "2402.03300", {"std_eps": 1e-6}
    ),
    "group_mean": AdvantagePart("reward minus its group's mean", "2503.20783"),
    "batch_std": AdvantagePart(
        "reward minus its group's mean, over the standard deviation of all rewards of the step",
        "2508.08221",
        {"std_eps": 1e-4},
    ),
    "batch_norm": AdvantagePart(
        "reward minus the mean of all rewards of the step, over their standard deviation",
        "1707.06347",
        {"std_eps": 1e-6},
        group_baseline=False,
    ),
    "gae": AdvantagePart(
        "what a token gains over what a critic expected before it, whitened over all tokens of the step",
        "1506.02438",
        {"gamma": 1.0, "lam": 0.95, "critic_lam": 0.95, "lam_alpha": 0.0},
        group_baseline=False,
        per_token="gae",
    ),
    "leave_one_out": AdvantagePart("reward minus the mean of its group's others", "2402.14740"),
    "raw": AdvantagePart("the reward itself, no baseline", "Williams 1992", group_baseline=False),
    "reinforce_pp": AdvantagePart(
        "the reward, discounted to each token, whitened over all tokens of the step",
        "2501.03262",
        {"gamma": 1.0},
        group_baseline=False,
        per_token="whiten",
    ),
    "reinforce_pp_baseline": AdvantagePart(
        "reward minus its group's mean, whitened over all tokens of the step",
        "2501.03262",
        per_token="whiten",
    ),
    "remax": AdvantagePart(
        "reward minus that of a greedy rollout", "2310.10505", group_baseline=False, greedy=True
    ),
    "maxrl": AdvantagePart("reward minus its group's mean, over that mean", "2602.02710"),
    "opo": AdvantagePart("reward minus its group's mean weighted by length", "2505.23585"),
    "gpg": AdvantagePart(
        "reward minus its group's mean, times all rollouts over those with a reward", "2504.02546"
    ),
    "gdpo": AdvantagePart(
        "each part of the reward normalised in its group, summed, normalised over the step",
        "2601.05242",
        {"std_eps": 1e-4},
        parts=True,
    ),
    "pass_at_k": AdvantagePart(
        "what a rollout adds to pass@k of its group, over its standard deviation",
        "2508.10751",
        {"pass_k": 4},
        binary=True,
    ),
    "pkpo": AdvantagePart(
        "weights whose policy gradient is unbiased for pass@k, minus their mean over the others",
        "2505.15201",
        {"pass_k": 4},
        binary=True,
    ),
    "top_two": AdvantagePart(
        "the best rollout's lead over the second, over the standard deviation; 0 for the others",
        "2503.19595",
        {"std_eps": 1e-6},
    ),
    "best_worst": AdvantagePart(
        "1 for the best rollout of a group, -1 for the worst; 0 for the others", "2404.19733"
    ),
    "optimal_token_baseline": AdvantagePart(
        "reward minus, token by token, the baseline of least variance",
        "verl docs/algo/otb.md",
        per_token="optimal_baseline",
    ),
    "length_shaped": AdvantagePart(
        "reward minus its group's mean times a share of its length, minus the group's mean",
        "prime-rl",
        {"length_weight": 0.25},
    ),
}

LOSSES: Mapping[str, LossPart] = {
    "clip": LossPart("ratio times advantage, clipped", "1707.06347", CLIP),
    "dual_clip": LossPart(
        "clip, and at most dual_clip times a negative advantage", "1912.09729", {**CLIP, "dual_clip": 3.0}
    ),
    "two_sided": LossPart(
        "clip, and the ratio at most ratio_cap on both sides", "2505.07291", {**CLIP, "ratio_cap": 4.0}
    ),
    "gspo": LossPart(
        "clip of one ratio per rollout, the geometric mean of its tokens'",
        "2507.18071",
        {"clip_low": 3e-4, "clip_high": 4e-4},
        one_advantage=True,
    ),
    "gspo_token": LossPart(
        "gspo's ratio, with each token's own gradient and advantage",
        "2507.18071",
        {"clip_low": 3e-4, "clip_high": 4e-4},
    ),
    "sequence_clip": LossPart(
        "clip of the whole rollout's ratio, the product of its tokens'",
        "2402.14740; TRL RLOOTrainer",
        CLIP,
        on_policy_identity=False,
        one_advantage=True,
    ),
    "luspo": LossPart(
        "gspo times the rollout's length",
        "2602.05261",
        {"clip_low": 2e-3, "clip_high": 2.5e-3},
        on_policy_identity=False,
        one_advantage=True,
    ),
    "gmpo": LossPart(
        "geometric mean of token ratios clipped in log space, to within e^-clip_low and e^clip_high",
        "2507.20673",
        {"clip_low": 0.4, "clip_high": 0.4},
        one_advantage=True,
    ),
    "cispo": LossPart(
        "REINFORCE weighted by the ratio held between ratio_floor and ratio_cap, no token dropped",
        "2506.13585",
        {"ratio_floor": 0.0, "ratio_cap": 5.0},
    ),
    "sapo": LossPart(
        "a smooth gate on the ratio instead of a clip", "2511.20347", {"tau_pos": 1.0, "tau_neg": 1.05}
    ),
    "dppo_tv": LossPart(
        "REINFORCE weighted by the ratio, dropped where the token's probability moved too far",
        "2602.04879",
        {"clip_low": 0.2, "clip_high": 0.2, "ratio_cap": 20.0},
    ),
    "dppo_kl": LossPart(
        "as dppo_tv, by the Bernoulli KL of the sampled token",
        "2602.04879",
        {"clip_low": 0.05, "clip_high": 0.05, "ratio_cap": 20.0},
    ),
    "prime": LossPart(
        "dppo_tv's trust region on the plain ratio, and a pull back to the policy that sampled",
        "prime-rl",
        {"clip_low": 0.2, "clip_high": 0.2, "pull": 1e-3},
    ),
    "vespo": LossPart(
        "REINFORCE weighted by a smooth function of the whole rollout's ratio",
        "2602.10693",
        {"vespo_k_pos": 2.0, "vespo_lam_pos": 3.0, "vespo_k_neg": 3.0, "vespo_lam_neg": 2.0},
    ),
    "reinforce": LossPart("minus advantage times log-probability", "Williams 1992"),
    "dro": LossPart("REINFORCE and half the squared log-ratio", "2405.19107", {"pull": 0.1}),
    "dpo": LossPart(
        "DPO of each rollout above its group against each below",
        "2402.04792",
        {"beta": 0.1, "label_smoothing": 0.0, "nll_coef": 0.0},
        on_policy_identity=False,
        one_advantage=True,
        pairs=True,
        reference=True,
    ),
    "ipo": LossPart(
        "IPO of each rollout above its group against each below",
        "2403.08635",
        {"beta": 0.1, "nll_coef": 0.0},
        on_policy_identity=False,
        one_advantage=True,
        pairs=True,
        reference=True,
    ),
    "simpo": LossPart(
        "SimPO of each rollout above its group against each below, no reference",
        "2405.14734",
        {"beta": 2.5, "margin": 1.375, "nll_coef": 0.0},
        on_policy_identity=False,
        one_advantage=True,
        pairs=True,
    ),
}

AGGREGATIONS: Mapping[str, str] = {
    "token_mean": "every token weighs the same",
    "seq_mean_token_mean": "every rollout weighs the same, shared among its tokens",
    "seq_mean_token_sum": "the mean over rollouts of the sum over their tokens",
    "constant": "the sum over tokens, over rollouts times rollout.max_tokens",
    "token_sum": "the sum over all tokens",
}

SEQ, TOKEN, SUM = "seq_mean_token_mean", "token_mean", "seq_mean_token_sum"

ROWS: Mapping[str, Row] = {
    "grpo": Row("group_norm", "clip", SEQ, "Group Relative Policy Optimization", "2402.03300"),
    "dr_grpo": Row("group_mean", "clip", "constant", "GRPO without its two biases", "2503.20783"),
    "dapo": Row(
        "group_norm",
        "clip",
        TOKEN,
        "GRPO with clip-higher and token mean",
        "2503.14476",
        dynamic_sampling=True,
        settings={"clip_high": 0.28},
    ),
    "lite_ppo": Row("batch_std", "clip", TOKEN, "group mean, batch standard deviation", "2508.08221"),
    "rloo": Row("leave_one_out", "clip", SUM, "REINFORCE leave-one-out", "2402.14740"),
    "rloo_sequence": Row(
        "leave_one_out", "sequence_clip", SEQ, "RLOO clipped by whole rollouts", "2402.14740; TRL"
    ),
    "ppo": Row("gae", "clip", TOKEN, "Proximal Policy Optimization, with a critic", "1707.06347"),
    "vapo": Row(
        "gae",
        "clip",
        TOKEN,
        "PPO with lambda by length, returns without bootstrap, and the likelihood of right answers",
        "2504.05118",
        settings={"clip_high": 0.28, "critic_lam": 1.0, "lam_alpha": 0.05, "positive_nll_coef": 0.1},
    ),
    "ppo_batch_norm": Row(
        "batch_norm", "clip", TOKEN, "PPO's loss on batch-normalised rewards, no critic", "1707.06347"
    ),
    "ppo_dual_clip": Row("batch_norm", "dual_clip", TOKEN, "ppo_batch_norm with the dual clip", "1912.09729"),
    "intellect_2": Row("group_norm", "two_sided", TOKEN, "GRPO clipped on both sides", "2505.07291"),
    "reinforce": Row("raw", "reinforce", SUM, "the policy gradient as derived", "Williams 1992"),
    "reinforce_pp": Row("reinforce_pp", "clip", TOKEN, "REINFORCE++", "2501.03262"),
    "reinforce_pp_baseline": Row(
        "reinforce_pp_baseline", "clip", TOKEN, "REINFORCE++ with a group baseline", "2501.03262"
    ),
    "remax": Row("remax", "reinforce", SUM, "REINFORCE against a greedy rollout", "2310.10505"),
    "maxrl": Row("maxrl", "reinforce", TOKEN, "maximum-likelihood RL", "2602.02710"),
    "opo": Row("opo", "reinforce", TOKEN, "on-policy RL with the optimal reward baseline", "2505.23585"),
    "gpg": Row("gpg", "reinforce", TOKEN, "Group Policy Gradient", "2504.02546"),
    "gdpo": Row("gdpo", "clip", TOKEN, "several rewards, each normalised by itself", "2601.05242"),
    "pass_at_k": Row("pass_at_k", "clip", TOKEN, "pass@k training, analytic", "2508.10751"),
    "pkpo": Row("pkpo", "reinforce", SUM, "pass@k policy optimization", "2505.15201"),
    "top_two": Row("top_two", "clip", SEQ, "pass@k training by the best rollout's lead", "2503.19595"),
    "otb": Row("optimal_token_baseline", "clip", SUM, "optimal token baseline", "verl docs/algo/otb.md"),
    "length_shaped": Row("length_shaped", "clip", TOKEN, "GRPO that prefers short answers", "prime-rl"),
    "gspo": Row("group_norm", "gspo", SEQ, "Group Sequence Policy Optimization", "2507.18071"),
    "gspo_token": Row("group_norm", "gspo_token", SEQ, "GSPO with a token's own gradient", "2507.18071"),
    "luspo": Row("group_norm", "luspo", SEQ, "length-unbiased GSPO", "2602.05261"),
    "gmpo": Row("group_norm", "gmpo", SEQ, "Geometric-Mean Policy Optimization", "2507.20673"),
    "cispo": Row("group_norm", "cispo", TOKEN, "clipped importance weights, all tokens kept", "2506.13585"),
    "sapo": Row("group_norm", "sapo", SEQ, "Soft Adaptive Policy Optimization", "2511.20347"),
    "dppo": Row("group_norm", "dppo_tv", TOKEN, "Divergence PPO, total variation", "2602.04879"),
    "dppo_kl": Row("group_norm", "dppo_kl", TOKEN, "Divergence PPO, Bernoulli KL", "2602.04879"),
    "prime": Row("group_mean", "prime", TOKEN, "prime-rl's default", "prime-rl"),
    "vespo": Row(
        "group_norm", "vespo", TOKEN, "Variational Sequence-level Soft Policy Optimization", "2602.10693"
    ),
    "dro": Row("group_mean", "dro", TOKEN, "Direct Reward Optimization with a group baseline", "2405.19107"),
    "online_dpo": Row("best_worst", "dpo", SEQ, "DPO on the policy's own best and worst", "2402.04792"),
    "online_ipo": Row("best_worst", "ipo", SEQ, "IPO on the policy's own best and worst", "2403.08635"),
    "online_simpo": Row("best_worst", "simpo", SEQ, "SimPO on the policy's own best and worst", "2405.14734"),
}
"""Rows of the table of algorithms."""

CORRECTIONS: Mapping[str, tuple[float | None, float | None]] = {
    "icepop": (0.5, 5.0),
    "tis": (None, 2.0),
    "sequence_tis": (None, 2.0),
    "sequence_mask": (None, 3.0),
    "geometric_mask": (0.999, 1.002),
    "none": (None, None),
}
"""Kind of importance weight sampler -> trainer: its lower and upper bound where the recipe is silent."""
