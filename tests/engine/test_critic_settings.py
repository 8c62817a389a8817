"""[critic] and the settings of generalised advantage estimation: what cannot be, and what rows fill in."""

import pytest
import tomli_w

from verigrad.engine import config
from verigrad.engine.config import ConfigError


@pytest.fixture
def plain(tmp_path):
    path = tmp_path / "my.toml"
    path.write_text(tomli_w.dumps({"policy": {"model": "some/model"}, "data": {"path": "rows.jsonl"}}))
    return str(path)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ("critic.lr=1e-4", "critic.lr has no effect with advantage 'group_norm', which needs no critic"),
        ("critic.warmup_steps=5", "critic.warmup_steps has no effect with advantage 'group_norm'"),
        (
            "algorithm.name=ppo_batch_norm critic.trunk=shared",
            "critic.trunk has no effect with advantage 'ba",
        ),
        (
            "algorithm.name=ppo critic.trunk=shared critic.model=m",
            "critic.model has no effect with critic.tr",
        ),
        ("algorithm.name=ppo critic.coef=0.5", "critic.coef has no effect with critic.trunk = 'own'"),
        ("algorithm.name=ppo critic.warmup_steps=100", "leaves the policy no step of train.num_steps = 100"),
        ("algorithm.name=ppo critic.value_clip=0.2", "critic.value_clip has no effect with train.num_minib"),
        ("algorithm.name=ppo algorithm.loss=gspo", "loss 'gspo' needs one advantage per rollout"),
        ("algorithm.whiten_rewards=true", "algorithm.whiten_rewards has no effect with advantage 'group_no"),
        ("algorithm.lam=0.9", "algorithm.lam has no effect: advantage 'group_norm' and loss 'clip' do not"),
        ("algorithm.name=vapo algorithm.lam=0.9", "algorithm.lam = 0.9 has no effect with algorithm.lam_al"),
    ],
)
def test_contradictions_are_refused_with_the_way_out(plain, overrides, says):
    with pytest.raises(ConfigError) as caught:
        config.load(plain, overrides.split())
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "numbers"),
    [
        ("algorithm.name=ppo rollout.group_size=1", (0.95, 0.95, 0.0, 0.0, 0.2)),
        ("algorithm.name=ppo algorithm.lam_alpha=0.1 critic.trunk=shared", (0.95, 0.95, 0.1, 0.0, 0.2)),
        ("algorithm.name=vapo critic.model=m critic.warmup_steps=9", (0.95, 1.0, 0.05, 0.1, 0.28)),
        ("algorithm.name=vapo algorithm.loss=sapo", (0.95, 1.0, 0.05, 0.1, None)),
        ("algorithm.name=vapo algorithm.lam_alpha=0 algorithm.lam=1", (1.0, 1.0, 0.0, 0.1, 0.28)),
        (
            "algorithm.advantage=gae critic.lr=1e-3 algorithm.whiten_rewards=true",
            (0.95, 0.95, 0.0, 0.0, 0.28),
        ),
        ("algorithm.name=ppo critic.value_clip=0.2 train.num_minibatches=2", (0.95, 0.95, 0.0, 0.0, 0.2)),
    ],
)
def test_a_row_fills_in_its_numbers_and_the_record_loads_as_itself(tmp_path, plain, overrides, numbers):
    cfg = config.load(plain, [*overrides.split(), "dynamic_sampling.enabled=false"])
    a = cfg.algorithm
    assert (a.lam, a.critic_lam, a.lam_alpha, a.positive_nll_coef, a.clip_high) == numbers
    again = tmp_path / "again.toml"
    again.write_text(config.to_toml(cfg))
    assert config.load(str(again)) == cfg


def test_the_likelihood_of_right_rollouts_goes_with_every_row(plain):
    assert config.load(plain, ["algorithm.positive_nll_coef=0.2"]).algorithm.positive_nll_coef == 0.2
    assert config.load(plain).algorithm.positive_nll_coef == 0.0
