"""Every shipped recipe loads and trains: those that name the hub on local data and a tiny model."""

import json

import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from tests.tiny import Forked, model_folder
from verigrad.engine import config, makers
from verigrad.engine.config import ConfigError

HUB = "verigrad.engine.recipes.hub_math"
NAMES = sorted(p.stem for p in config.RECIPES.glob("*.toml") if "[[stage]]" not in p.read_text())
SMALL = [
    "train.num_steps=2", "train.num_minibatches=1", "rollout.group_size=2", "rollout.groups_per_step=2",
    "rollout.backend=transformers", "rollout.max_tokens=8", "policy.dtype=float32",
    "policy.tokens_per_batch=1024", "dynamic_sampling.enabled=false", "run.folder=run", "run.save_every=1",
]  # fmt: skip
ASKED = (
    "Solve the following math problem step by step. The last line of your response should be of the form "
    "Answer: $Answer (without quotes).\n\n{}\n\nRemember to put your answer on its own line."
)


def write_gsm8k(folder):
    for name, who in (("gsm8k", "Ann"), ("test", "Ben")):
        rows = [
            {"question": f"{who} has {i} eggs and buys 1,000. How many?", "answer": f"So ...\n#### 1,{i:03}"}
            for i in range(12)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_dapo(folder):
    for name, num, repeats in (("dapo", 10, 3), ("aime", 4, 2)):
        rows = [
            {
                "data_source": "math_dapo",
                "prompt": [{"role": "user", "content": ASKED.format(f"What is {i} + {num}?")}],
                "reward_model": {"ground_truth": str(i + num), "style": "rule-lighteval/MATH_v2"},
                "extra_info": {"index": f"{name}-{i}-{again}"},
            }
            for again in range(repeats)
            for i in range(num)
        ]
        Dataset.from_list(rows).to_parquet(str(folder / f"{name}.parquet"))


HUB_MODEL = [f"policy.model={model_folder()}", "rollout.max_prompt_tokens=480"]
DAPO = [
    'data.options={path = "dapo.parquet"}', 'data.evals.aime24.options={path = "aime.parquet"}',
    "data.evals.aime24.num_samples=2", "algorithm.overlong_buffer_tokens=4", *HUB_MODEL,
]  # fmt: skip
LADDER = ["policy.options={num_steps = 3, batch_size = 4}", "data.num_eval=6"]
AGENT = ["data.num_eval=4", "sandbox.backend=local_process", "sandbox.trusted=true"]  # on any machine
OVERRIDES = {
    "agent_quickstart": [
        *AGENT, "policy.options={num_steps = 3, batch_size = 4}", "rollout.max_tokens=24",
        "dynamic_sampling.oversample=3.0",
    ],
    "agent_chores": [
        *AGENT, 'data.options={num_problems = 48, topics = ["find"]}', "agent.explain=false",
        f"policy.model={model_folder()}", "rollout.max_prompt_tokens=480", "agent.max_turn_tokens=6",
        "agent.max_sandboxes=2", "sandbox.memory_mb=1024",
    ],
    "quickstart": [*LADDER, "dynamic_sampling.oversample=3.0"],
    "curriculum": LADDER,
    "quickstart_code": [
        *LADDER, "dynamic_sampling.oversample=3.0", "sandbox.backend=local_process", "sandbox.trusted=true",
    ],
    "r1_zero_scratch": [
        'policy.options={size = "small", num_steps = 3, batch_size = 4}', "data.evals.test.num=4",
        "dynamic_sampling.oversample=3.0",
    ],
    "r1_zero_countdown": ["data.options={num_problems = 50}", "data.num_eval=4", *HUB_MODEL],
    "r1_zero_gsm8k": [
        'data.options={path = "gsm8k.jsonl"}', 'data.evals.gsm8k_test.options={path = "test.jsonl"}',
        "data.evals.gsm8k_test.num=3", *HUB_MODEL,
    ],
    "dapo_math_7b": DAPO,
    "dapo_math_32b": DAPO,
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_loads_and_is_short(name):
    assert len((config.RECIPES / f"{name}.toml").read_text().splitlines()) <= 40
    cfg = config.load(name)
    assert cfg.run.folder == f"runs/{name}"
    assert config.batch_algebra(cfg)
    for path in (cfg.data.path, *(one.path for one in cfg.data.evals.values()), cfg.policy.model):
        if makers.is_maker(path):
            makers.find(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(OVERRIDES))
def test_it_trains_two_steps_on_a_cpu(name, tmp_path):
    write_gsm8k(tmp_path)
    write_dapo(tmp_path)
    status, printed = Forked("train", name, *SMALL, *OVERRIDES[name], folder=tmp_path).wait(timeout=170)
    assert status == 0, printed
    metrics = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == [1, 2]
    rows = pq.read_table(tmp_path / "run/rollouts/step_000002.parquet").to_pylist()
    assert len(rows) == 4
    assert {row["outcome"] for row in rows} <= {"right", "wrong", "partial", "unparseable"}
    assert (tmp_path / "run/checkpoints/step_000002").is_dir()


def test_dapo_is_as_published():
    cfg = config.load("dapo_math_32b")
    assert (cfg.rollout.groups_per_step, cfg.rollout.group_size, cfg.train.num_minibatches) == (512, 16, 16)
    assert cfg.rollout.groups_per_step * cfg.rollout.group_size // cfg.train.num_minibatches == 512
    assert (cfg.algorithm.clip_low, cfg.algorithm.clip_high) == (0.2, 0.28)
    assert (cfg.rollout.max_tokens, cfg.algorithm.overlong_buffer_tokens) == (20480, 4096)
    assert (cfg.optim.lr, cfg.optim.schedule, cfg.optim.warmup_steps) == (1e-6, "constant", 20)
    assert (cfg.algorithm.kl_coef, cfg.dynamic_sampling.enabled) == (0.0, True)
    assert cfg.data.evals["aime24"].num_samples == 32


def make(function, **options):
    return makers.make_rows(f"{HUB}:{function}", seed=0, options=options)


def test_gsm8k_answers_are_the_numbers_after_the_mark(tmp_path):
    write_gsm8k(tmp_path)
    rows = make("gsm8k", path=str(tmp_path / "gsm8k.jsonl"))
    assert rows[7] == {"prompt": "Ann has 7 eggs and buys 1,000. How many?", "answer": "1007"}


def test_dapo_rows_are_unwrapped_and_each_problem_is_there_once(tmp_path):
    write_dapo(tmp_path)
    rows = make("dapo_math", path=str(tmp_path / "dapo.parquet"))
    assert [row["answer"] for row in rows] == [str(i + 10) for i in range(10)]
    assert rows[3]["prompt"][0]["role"] == "user"
    assert "What is 3 + 10?" in rows[3]["prompt"][0]["content"]
    assert len(make("aime24", path=str(tmp_path / "aime.parquet"))) == 4


@pytest.mark.parametrize(
    ("function", "row", "says"),
    [
        ("gsm8k", {"question": "1+1?", "answer": "2"}, "bad.jsonl line 1: its answer has no `#### number`"),
        ("gsm8k", {"question": "1+1?", "answer": "x ####  "}, "its answer has no `#### number`"),
        ("gsm8k", {"prompt": "1+1?"}, "line 1: has no column 'question'; it has prompt"),
        ("dapo_math", {"prompt": "x", "reward_model": "2"}, "its reward_model has no ground_truth"),
        ("dapo_math", {"prompt": "x", "reward_model": {"ground_truth": None}}, "has no ground_truth"),
        ("aime24", {"problem": "x"}, "has no column 'prompt'; it has problem"),
        ("aime24", [], "bad.jsonl line 1"),
    ],
)  # fmt: skip
def test_rows_of_another_shape_are_refused_by_place(tmp_path, function, row, says):
    (tmp_path / "bad.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ConfigError) as caught:
        make(function, path=str(tmp_path / "bad.jsonl"))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_hub_out_of_reach_is_said_in_one_line(monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(ConfigError, match="'openai/gsm8k', configuration 'main', split 'test'") as caught:
        make("gsm8k", split="test")
    assert "no route to host" in str(caught.value)
    assert "\n" not in str(caught.value)
