"""`verigrad eval` as a user runs it: runs, models, both samplers, and what is on disk and on the screen."""

import json
import re
import shutil
import tomllib

import peft
import pyarrow.parquet as pq
import pytest

from tests.tiny import Forked, model_folder, new_model, run_cli, write_recipe
from verigrad.engine.eval_run import folder_names
from verigrad.verifiers import registry
from verigrad.verifiers.pool_stats import CLOCKED

SETS = """
[data.evals.products]
path = "products.jsonl"
num_samples = 3
temperature = 1.0
verifier = "exact_match"
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder in which a tiny run was trained to its end, with two sets of held-out problems."""
    folder = tmp_path_factory.mktemp("home")
    recipe = write_recipe(folder)
    recipe.write_text(
        recipe.read_text()
        .replace("num_steps = 5", "num_steps = 2")
        .replace("save_every = 2", "save_every = 1")
        + SETS
    )
    rows = [{"prompt": f"{a}*{a}=", "answer": str(a * a), "kind": "square"} for a in range(4)]
    (folder / "products.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, text = Forked("train", "tiny.toml", folder=folder).wait()
    assert status == 0, text
    return folder


def version(name):
    return registry.load(name).policy.version


def evaluated(folder, *words):
    """The JSON object, and what was said on the way."""
    status, text = Forked("eval", *words, "--json", folder=folder).wait()
    assert status == 0, text
    (line,) = [one for one in text.splitlines() if one.startswith("{")]
    return json.loads(line)


def recorded(folder, data):
    rows = [json.loads(line) for line in (folder / "run" / "eval.jsonl").read_text().splitlines()]
    return [untimed(row) for row in rows if row["data"] == data]


def untimed(row):
    """A row without what a clock wrote."""
    return {key: value for key, value in row.items() if key not in {f"verify/{name}" for name in CLOCKED}}


def test_a_run_is_asked_again_what_it_was_asked_while_it_trained(home):
    made = evaluated(home, "run")["evaluations"]
    assert [row["data"] for row in made] == ["held_out", "products"]
    for row in made:
        ours = {key: value for key, value in row.items() if key not in ("model", "path", "used")}
        assert untimed(ours) == recorded(home, row["data"])[-1]  # the same samples of the same weights
        assert ours["verify/p50_s"] > 0
        assert row["used"]["seed"] == 0
    assert made[0]["used"]["verifier"].startswith("verifiers_of_tests.py:low_first")
    assert made[1]["used"]["verifier"] == "exact_match " + version("exact_match")


def test_a_run_of_several_sets_resumes_and_refuses_other_ones(home, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(home, folder)
    shutil.rmtree(folder / "run" / "checkpoints" / "step_000002")  # as killed before it was written
    changed = Forked("train", "tiny.toml", "data.evals.products.num=2", folder=folder).wait()
    assert changed[0] == 2
    assert "data.evals.products: {'path': 'products.jsonl'" in changed[1]
    status, text = Forked("train", "tiny.toml", folder=folder).wait()
    assert status == 0, text
    assert "resuming after step 1" in text
    for data in ("held_out", "products"):
        assert recorded(folder, data) == recorded(home, data)
        assert f"{data} gain" in text


def test_the_starting_model_and_the_run_are_compared_as_the_run_compares_itself(home):
    made = evaluated(home, model_folder(), "run")
    start, end = (row["avg"] for row in made["evaluations"] if row["data"] == "held_out")
    assert start == recorded(home, "held_out")[0]["avg"]
    (avg,) = [c for c in made["comparisons"] if (c["data"], c["score"]) == ("held_out", "avg")]
    assert avg["gain"] == pytest.approx(end - start)
    assert avg["num_better"] + avg["num_worse"] + avg["num_same"] == avg["num_problems"] == 6
    assert {c["score"] for c in made["comparisons"] if c["data"] == "products"} == {"avg", "pass@1", "pass@2"}


def test_another_seed_draws_other_samples_of_the_same_problems(home):
    first, second = (evaluated(home, "run", "--seed", seed)["evaluations"][0] for seed in ("0", "1"))
    assert first["used"]["data"] == second["used"]["data"]
    assert (
        first["completion_tokens_mean"] != second["completion_tokens_mean"] or first["avg"] != second["avg"]
    )


def rewards_of(path):
    """What was said and paid of each problem's samples, by its id."""
    found = {}
    for row in pq.read_table(path).to_pylist():
        found.setdefault(row["problem_id"], []).append((row["seed"], row["text"], row["reward"]))
    return found


def test_a_subset_in_another_order_gets_the_same_samples(home):
    (home / "some.jsonl").write_text("".join(reversed((home / "products.jsonl").open().readlines()[:3])))
    for data in ("products", "some"):
        words = ["run", "--data", f"{data}.jsonl", "--n", "4", "-o", f"of_{data}"]
        evaluated(home, *words)
    whole, some = (rewards_of(home / f"of_{d}/evals/step_000002_{d}.parquet") for d in ("products", "some"))
    assert len(some) == 3
    assert some == {name: whole[name] for name in some}


def test_fewer_of_a_run_s_problems_are_asked_as_all_are(home):
    evaluated(home, "run", "--num", "3", "-o", "fewer")
    fewer = rewards_of(home / "fewer/evals/step_000002_held_out.parquet")
    all_of_them = rewards_of(home / "run/evals/step_000002_held_out.parquet")
    assert len(fewer) == 3
    assert fewer == {name: all_of_them[name] for name in fewer}


def refused(folder, *words):
    status, text = Forked("eval", *words, folder=folder).wait()
    assert status == 2, text
    (line,) = [one for one in text.splitlines() if one.startswith("verigrad:")]
    return line


@pytest.fixture
def copy(home, tmp_path):
    """The run and its data, to be changed."""
    shutil.copytree(home, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_run_whose_split_moved_is_not_asked_what_it_was_trained_on(copy):
    recipe = (copy / "tiny.toml").read_text()
    (copy / "other.toml").write_text(recipe.replace("num_eval = 6", "num_eval = 7"))
    says = "run step 2: 1 of 7 problems of held_out are not among the 6 that run held out (one is '"
    assert says in refused(copy, "run", "--recipe", "other.toml")
    assert "of held_out are not among the 6" in refused(copy, "run", "--recipe", "tiny.toml", "train.seed=5")
    table = copy / "sums.jsonl"
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(lines).replace("+", " plus "))  # the data behind the run was rewritten
    assert "6 of 6 problems of held_out are not among the 6" in refused(copy, "run")
    assert "6 of 6 problems of held_out are not among the 6" in refused(copy, model_folder(), "run")
    table.write_text("".join(lines))
    products = copy / "products.jsonl"
    products.write_text("".join(products.open().readlines()[1:]))
    assert "1 of the 4 problems of products that run held out are missing" in refused(copy, "run")


def test_a_run_without_records_is_not_asked_what_it_sampled(copy):
    shutil.rmtree(copy / "run" / "evals")
    assert len(evaluated(copy, "run")["evaluations"]) == 2
    recipe = (copy / "tiny.toml").read_text()
    (copy / "other.toml").write_text(recipe.replace("num_eval = 6", "num_eval = 30"))
    line = refused(copy, "run", "--recipe", "other.toml")
    assert re.search(r"run was trained on \d+ of 30 problems of held_out \(one is '\w+', in step_0", line)


def test_models_whose_names_are_alike_have_folders_of_their_own():
    made = folder_names(["m 1", "m_1", "M_1", "eval.jsonl", "..", "a/b #2"])
    assert made == ["m_1", "m_1_2", "M_1_3", "eval.jsonl_2", "model", "a_b_2"]


def test_what_is_written_can_be_read_back(home):
    made = evaluated(home, model_folder(), "run", "--n", "4", "--by", "kind", "-o", "out")
    out = home / "out"
    lines = [json.loads(line) for line in (out / "eval.jsonl").read_text().splitlines()]
    assert lines == made["evaluations"]
    assert json.loads((out / "comparisons.json").read_text()) == made["comparisons"]
    table = pq.read_table(out / "run_step_2" / "evals" / "step_000002_held_out.parquet").to_pylist()
    assert len(table) == 6 * 4
    assert sum(row["reward"] for row in table) / 24 == pytest.approx(lines[2]["avg"])
    assert {"problem_id", "text", "seed", "extracted", "answer", "meta"} <= set(table[0])
    settings = tomllib.loads((out / "run_step_2" / "config.toml").read_text())
    assert settings["verifier"]["name"] == "verifiers_of_tests.py:low_first"
    assert sorted(lines[0]["by"]) == ["even", "odd"]
    status, text = Forked("eval", "run", "-o", "out", folder=home).wait()
    assert status == 2
    assert "out: is there already" in text


def test_a_model_from_an_empty_folder(tmp_path):
    (tmp_path / "sums.csv").write_text("prompt,answer,topic\n1+1=,2,a\n1+2=,3,b\n")
    words = [
        "--data",
        "sums.csv",
        "--verifier",
        "exact_match",
        "--n",
        "2",
        "--max-tokens",
        "6",
        "--by",
        "topic",
    ]
    more = ["rollout.max_prompt_tokens=20", "rollout.backend=transformers"]
    status, out, err = run_cli("eval", model_folder(), *words, *more, folder=tmp_path)
    assert status == 0, err
    shown = {line.split("  ")[0]: line for line in out.splitlines() if line}
    assert re.search(r"0\.\d{3} \[0\.\d{3}, 0\.\d{3}\]", shown["avg@2"])
    assert {"pass@1", "pass@2", "maj@1", "maj@2", "undecided", "completion tokens", "prompt template"} <= set(
        shown
    )
    assert shown["temperature"].split() == ["temperature", "1.0"]
    assert shown["max tokens"].split() == ["max", "tokens", "6"]
    assert shown["verifier"].split() == ["verifier", "exact_match", version("exact_match")]
    assert {"sums, avg by category", "a", "b"} <= {key.strip() for key in shown}
    assert "\x1b" not in out
    assert "sampling" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sums.csv"]


@pytest.mark.vllm
def test_both_samplers_and_two_models_in_one_process(home):
    words = ["run", model_folder(seed=1), "--data", "products.jsonl", "rollout.kv_cache_gb=0.25"]
    made = {
        backend: evaluated(home, *words, "--n", "1", "--temperature", "0", f"rollout.backend={backend}")
        for backend in ("vllm", "transformers")
    }
    rows = {name: one["evaluations"] for name, one in made.items()}
    assert [row["used"]["sampler"] for row in rows["vllm"]] == ["vllm float32"] * 2
    assert [row["avg"] for row in rows["vllm"]] == [row["avg"] for row in rows["transformers"]]  # both greedy


WRONG = [
    ("run --by knid", "eval.by = 'knid': no held-out problem has this column; they have kind"),
    ("run --verifier math_anser", "verifier 'math_anser' is not known; did you mean 'math_answer'?"),
    ("run --verifier exact_match --option casfold=true", "did you mean 'casefold'?"),
    ("run --verifier verifiers_of_tests.py:wants_hint", "needs 'hint'"),
    ("run --data wrong.csv", "wrong.csv line 2: has no column 'prompt'; it has question, answer"),
    (
        "notok --data sums.jsonl rollout.max_prompt_tokens=60 --max-tokens 8",
        "notok: its folder holds no token",
    ),
    ("run --max-tokens 5000", "is more than the 512 positions"),
]


@pytest.mark.parametrize(("words", "says"), WRONG)
def test_what_is_wrong_is_said_in_one_line(home, words, says):
    (home / "wrong.csv").write_text("question,answer\n1+1=,2\n")
    (home / "notok").mkdir(exist_ok=True)
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        (home / "notok" / name).write_bytes(
            (home / "run" / "checkpoints" / "step_000002" / name).read_bytes()
        )
    status, text = Forked("eval", *words.split(), folder=home).wait()
    assert status == 2, text
    (line,) = [one for one in text.splitlines() if one.startswith("verigrad:")]
    assert says in line
    assert "Traceback" not in text


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A whole adapter on the tiny model."""
    folder = tmp_path_factory.mktemp("adapter")
    made = peft.get_peft_model(new_model(), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    made.peft_config["default"].base_model_name_or_path = model_folder()
    made.save_pretrained(folder)
    return folder


BROKEN = {
    "list": b"[1, 2]",
    "binary": b"\xff",
    "base": {"base_model_name_or_path": "/no/model"},
    "no base": {"base_model_name_or_path": None},
    "rank": {"r": 3},
    "words": {"r": "many"},
}
"""What adapter_config.json holds, or which of its values are others."""


@pytest.mark.parametrize("harm", [*BROKEN, "missing", "corrupt", "cut"])
def test_a_broken_adapter_is_said_in_one_line(adapter, tmp_path, harm):
    broken = tmp_path / "broken"
    shutil.copytree(adapter, broken)
    settings, weights = broken / "adapter_config.json", broken / "adapter_model.safetensors"
    if harm in BROKEN:
        written = BROKEN[harm]
        if isinstance(written, dict):
            written = json.dumps({**json.loads(settings.read_text()), **written}).encode()
        settings.write_bytes(written)
    elif harm == "missing":
        weights.unlink()
    else:
        weights.write_bytes(b"\x00" * 100 if harm == "corrupt" else weights.read_bytes()[:-50])
    (tmp_path / "sums.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    words = ["broken", "--data", "sums.jsonl", "--max-tokens", "4", "policy.device=cpu"]
    words += ["rollout.backend=transformers", "rollout.max_prompt_tokens=60"]
    line = refused(tmp_path, *words)
    assert "broken" in line or "/no/model" in line
    assert not any("Traceback" in path.read_text() for path in tmp_path.glob("printed-*"))


def test_what_the_verifier_could_not_judge_is_on_disk_and_no_score(home):
    words = ["run", "--verifier", "verifiers_of_tests.py:always_raises", "-o", "broken"]
    status, text = Forked("eval", *words, folder=home).wait()
    assert status == 1, text
    assert (
        "evaluation held_out: verifier 'verifiers_of_tests.py:always_raises' could not decide 12 of 12"
        in text
    )
    table = pq.read_table(home / "broken" / "evals" / "step_000002_held_out.parquet")
    assert set(table["outcome"].to_pylist()) == {"error"}
    assert not (home / "broken" / "eval.jsonl").exists()
