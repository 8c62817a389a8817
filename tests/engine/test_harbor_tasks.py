"""Task folders of Harbor and terminal-bench -> rows whose oracle passes in our sandboxes."""

import dataclasses

import pytest

from tests import boxes
from verigrad.engine import harbor_tasks, makers
from verigrad.engine.config import ConfigError
from verigrad.engine.data import to_problem
from verigrad.sandboxes.base import HOME, SandboxSpec
from verigrad.sandboxes.pool import SandboxPool, SandboxSettings
from verigrad.verifiers import registry
from verigrad.verifiers.agent_rehearsal import rehearse


@pytest.fixture(scope="module", params=boxes.KINDS)
def pool(request):
    boxes.require(request.param)
    with SandboxPool(SandboxSettings(SandboxSpec(request.param))) as opened:
        yield opened


def write(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


HARBOR = {
    "task.toml": 'version = "1.0"\n[metadata]\ndifficulty = "easy"\n[verifier]\ntimeout_sec = 20.0\n'
    "[agent]\ntimeout_sec = 60.0\n[environment]\ncpus = 1\n",
    "instruction.md": "Sum the numbers in /app/data/numbers.txt into /app/sum.txt.\n",
    "environment/Dockerfile": "FROM python:3.12-slim\n# data\nWORKDIR /app\n"
    "COPY data/ ./data/\nCOPY run.sh \\\n  /app/\n",
    "environment/data/numbers.txt": "3\n4\n",
    "environment/run.sh": "cat /app/data/numbers.txt\n",
    "tests/test.sh": "#!/bin/bash\nif python3 /tests/test_state.py; then echo 1 > /logs/verifier/reward.txt\n"
    "else echo 0 > /logs/verifier/reward.txt; fi\n",
    "tests/test_state.py": "assert open('/app/sum.txt').read().strip() == '7'\n",
    "solution/solve.sh": "#!/bin/bash\ncd /app\n"
    "python3 -c \"print(sum(map(int, open('data/numbers.txt'))))\" > sum.txt\n",
}
HOOK = (
    "import pytest\n\n\n@pytest.hookimpl(wrapper=True)\ndef pytest_runtest_makereport(item, call):\n"
    "    report = yield\n    report.outcome = 'passed'\n    return report\n"
)
BENCH = {
    "task.yaml": "instruction: |-\n  Write hello to /app/out.txt.\n"
    "parser_name: pytest\nmax_test_timeout_sec: 30\n",
    "Dockerfile": "FROM ubuntu:24.04\nWORKDIR /app\n",
    "docker-compose.yaml": "services:\n  client: {}\n",
    "run-tests.sh": "apt-get install -y curl\nuv run pytest $TEST_DIR/test_outputs.py\n",
    "solution.sh": "echo hello > /app/out.txt\n",
    "tests/test_outputs.py": "from pathlib import Path\nimport pytest\n\n\ndef test_there():\n"
    "    assert Path('/app/out.txt').exists()\n\n\n@pytest.mark.parametrize('word', ['hello'])\n"
    "def test_says(word):\n    assert word in Path('/app/out.txt').read_text()\n",
}


def judge(row, doing, pool):
    problem, verifier = to_problem(row, {}), registry.load("agent_task")
    attempt = pool.run(lambda box: rehearse(problem, doing, box))

    def judged(box):
        box.load(attempt.snapshot)
        return verifier.judge(problem, [dataclasses.replace(attempt, sandbox=box)])[0]

    return pool.run(judged)


@pytest.mark.parametrize(
    ("files", "cheats"),
    [
        (HARBOR, [
            {},
            {"files": {"sum.txt": "8"}},
            {"files": {".logs/verifier/reward.txt": "1"}},
            {"files": {".tests/test_state.py": "", "test_state.py": ""}},
        ]),
        (BENCH, [
            {},
            {"files": {"out.txt": "goodbye"}},
            {"files": {".logs/reward.txt": "1", ".logs/verifier/reward.json": '{"reward": 1}'}},
            {"files": {".tests/test_outputs.py": "def test_there(): pass\ndef test_says(): pass\n"}},
            {"files": {"conftest.py": HOOK, "pytest.py": "raise SystemExit(0)", "xml.py": "1"}},
            {"files": {"pytest.ini": "[pytest]\naddopts = --collect-only\n"}},
        ]),
    ],
    ids=["harbor", "terminal-bench"],
)  # fmt: skip
def test_the_oracle_passes_and_doing_nothing_or_cheating_does_not(files, cheats, tmp_path, pool):
    write(tmp_path / "one", files)
    (row,) = makers.make_rows("environment:harbor", seed=0, options={"folder": str(tmp_path)})
    right = judge(row, row["meta"]["oracle"], pool)
    assert (right.reward, right.reason) == (1.0, "trust low")
    for cheat in cheats:
        verdict = judge(row, cheat, pool)
        assert verdict.reward == 0, (cheat, verdict)


def test_skipped_tests_are_not_passed(tmp_path, pool):
    skips = "import pytest\n\n\ndef test_a():\n    pass\n\n\ndef test_b():\n    pytest.skip('no')\n"
    write(tmp_path / "one", BENCH | {"tests/test_outputs.py": skips})
    (row,) = harbor_tasks.tasks(seed=0, folder=str(tmp_path / "one"))
    assert judge(row, {}, pool).reward == 0


def test_tests_that_cannot_be_collected_are_not_passed(tmp_path, pool):
    write(
        tmp_path / "one",
        BENCH | {"tests/test_outputs.py": "import nothing_here\n\ndef test_a():\n    pass\n"},
    )
    (row,) = harbor_tasks.tasks(seed=0, folder=str(tmp_path / "one"))
    assert judge(row, {}, pool).reward == 0


def test_a_folder_of_folders_is_read_by_name(tmp_path):
    write(tmp_path / "b", HARBOR)
    write(tmp_path / "a", BENCH)
    write(tmp_path / "notes", {"README.md": "no task"})
    rows = harbor_tasks.tasks(seed=0, folder=str(tmp_path))
    assert [row["id"] for row in rows] == ["a", "b"]
    assert [row["id"] for row in harbor_tasks.tasks(seed=0, folder=str(tmp_path), names=["b"])] == ["b"]


def test_files_and_paths_are_moved_to_the_agents_folder(tmp_path):
    (row,) = harbor_tasks.tasks(seed=0, folder=str(write(tmp_path / "one", HARBOR)))
    files = row["meta"]["setup"]["files"]
    assert files == {"data/numbers.txt": "3\n4\n", "run.sh": f"cat {HOME}/data/numbers.txt\n"}
    assert row["prompt"] == f"Sum the numbers in {HOME}/data/numbers.txt into {HOME}/sum.txt.\n"
    assert row["meta"]["check"]["limits"]["wall_s"] == 20.0
    assert f"{HOME}/.tests/test_state.py" in row["meta"]["check"]["script"]


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("/app", HOME), ("see /app.", f"see {HOME}."), ("/app/x", f"{HOME}/x"), ("/apple", "/apple"),
        ("/srv/app", "/srv/app"), ("x/tests", "x/tests"), ("$TEST_DIR/a", f"{HOME}/.tests/a"),
        ("/app-data", "/app-data"), ('"/logs/verifier"', f'"{HOME}/.logs/verifier"'),
    ],
)  # fmt: skip
def test_only_whole_paths_are_rewritten(text, want):
    assert harbor_tasks.Rewrite("/app")(text) == want


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"environment/Dockerfile": "FROM x\nRUN apt-get install -y nginx\n"}, "copy files (RUN apt"),
        ({"environment/Dockerfile": "FROM x\nCOPY data /etc/data\n"}, "outside its working folder /app"),
        ({"environment/Dockerfile": "FROM x\nCOPY nothing.txt .\n"}, "nothing.txt, which is not there"),
        ({"environment/Dockerfile": "FROM x\nCOPY ../../secret .\n"}, "which is not there"),
        ({"task.toml": "[environment]\ndocker_image = 'a/b:1'\n"}, "an image of its own (a/b:1)"),
        ({"task.toml": "[[steps]]\nname = 'a'\n"}, "has several steps"),
        ({"task.toml": "[verifier]\nenv = {KEY = 'x'}\n"}, "environment variables"),
        ({"task.toml": "[verifier]\ntimeout_sec = 'long'\n"}, "expected a number of seconds"),
        ({"task.toml": "not toml"}, "task.toml is not TOML"),
        ({"tests/test.sh": None}, "has no tests/test.sh"),
        ({"instruction.md": None}, "has no instruction.md"),
    ],
)  # fmt: skip
def test_a_task_that_cannot_be_had_is_refused_in_one_line(change, says, tmp_path):
    folder = write(tmp_path / "one", HARBOR | {k: v for k, v in change.items() if v is not None})
    for name, text in change.items():
        if text is None:
            (folder / name).unlink()
    with pytest.raises(ConfigError, match="task one") as caught:
        harbor_tasks.tasks(seed=0, folder=str(tmp_path))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_prepared_image_brings_what_the_dockerfile_installs(tmp_path):
    install = {"environment/Dockerfile": "FROM x\nWORKDIR /srv/app\nRUN make everything\n"}
    write(tmp_path / "one", HARBOR | install)
    (row,) = harbor_tasks.tasks(seed=0, folder=str(tmp_path), prepared=True)
    assert row["meta"]["setup"] == {"files": {}, "commands": ["cp -a /srv/app/. ."]}


def test_a_link_in_a_task_brings_no_file_of_this_machine(tmp_path):
    (tmp_path / "secret").write_text("secret")
    folder = write(tmp_path / "tasks/one", HARBOR)
    (folder / "environment/data/link.txt").symlink_to(tmp_path / "secret")
    (folder / "environment/linked").symlink_to(tmp_path)
    (row,) = harbor_tasks.tasks(seed=0, folder=str(tmp_path / "tasks"))
    assert set(row["meta"]["setup"]["files"]) == {"data/numbers.txt", "run.sh"}


def test_a_folder_without_tasks_is_said(tmp_path):
    with pytest.raises(ConfigError, match="holds no task"):
        harbor_tasks.tasks(seed=0, folder=str(tmp_path))
    with pytest.raises(ConfigError, match="no folder"):
        harbor_tasks.tasks(seed=0, folder=str(tmp_path / "nowhere"))
    write(tmp_path / "one", HARBOR)
    with pytest.raises(ConfigError, match="no task 'two'; it has one"):
        harbor_tasks.tasks(seed=0, folder=str(tmp_path), names=["two"])
