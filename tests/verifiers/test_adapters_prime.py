"""Prime Intellect's task sets, with the real package in an environment of its own."""

import subprocess
import sys

import pytest

from verigrad.engine import makers
from verigrad.engine.settings import ConfigError
from verigrad.sandboxes.base import SandboxSpec
from verigrad.sandboxes.pool import SandboxSettings
from verigrad.verifiers import registry
from verigrad.verifiers.adapters import prime
from verigrad.verifiers.base import Attempt, Problem
from verigrad.verifiers.isolation import VerifierPool

TASKS = """
import verifiers.v1 as vf


class SumData(vf.TaskData):
    answer: str


class SumTask(vf.Task[SumData]):
    @vf.reward
    async def exact(self, task: SumData, trace: vf.Trace) -> float:
        return float(trace.last_reply == task.answer)

    @vf.reward(weight=0.25)
    async def polite(self, trace: vf.Trace) -> float:
        return float("please" in trace.last_reply)

    @vf.metric
    async def length(self, trace: vf.Trace) -> float:
        return float(len(trace.last_reply))


class SumsConfig(vf.TasksetConfig):
    seed: int = 0
    most: int = 5


class Sums(vf.Taskset[SumTask, SumsConfig]):
    def load(self):
        print("loading")  # must not break into the answer
        for n in range(self.config.most):
            yield SumTask(SumData(prompt=f"{n}+{self.config.seed}=", answer=str(n + self.config.seed)))


class ProgramTask(vf.Task[SumData]):
    @vf.reward
    async def runs(self, task: SumData, trace: vf.Trace, runtime: vf.Runtime) -> float:
        await runtime.write("program.py", trace.last_reply.encode())
        done = await runtime.run(["python3", "program.py"], {})
        return float(done.stdout.strip() == task.answer)


class Programs(vf.Taskset[ProgramTask, vf.TasksetConfig]):
    def load(self):
        yield ProgramTask(SumData(prompt="print 4", answer="4", system_prompt="Write Python."))


class BrokenTask(vf.Task[SumData]):
    @vf.reward
    async def broken(self, trace: vf.Trace) -> float:
        raise OSError("the judge is away")


class Broken(vf.Taskset[BrokenTask, vf.TasksetConfig]):
    def load(self):
        yield BrokenTask(SumData(prompt="?", answer="1"))
"""


def install(folder):
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, f"verifiers=={prime.TESTED}"], check=True)


@pytest.fixture
def python(users_cache):
    """An interpreter with the real package, made once; it has neither torch nor anything of ours."""
    return str(makers.make_once(f"prime-env-{prime.TESTED}", install) / "bin" / "python")


@pytest.fixture
def tasks(tmp_path):
    (tmp_path / "tasks.py").write_text(TASKS)
    return f"{tmp_path / 'tasks.py'}"


def problems(reference, python, **options):
    made = makers.make_rows(f"prime:{reference}", seed=3, options={"python": python, **options})
    return [Problem(str(n), row["prompt"], row.get("answer"), row["meta"]) for n, row in enumerate(made)]


def verdicts(reference, python, problem, *texts, sandbox=None, **options):
    given = {"python": python, **options}
    with VerifierPool(f"prime:{reference}", options=given, num_workers=1, sandbox=sandbox) as pool:
        return pool.submit(problem, [Attempt(text) for text in texts]).result(120)


@pytest.mark.slow
def test_tasks_are_rows_and_their_rewards_verdicts(tasks, python):
    made = problems(f"{tasks}:Sums", python, size=4, config={"most": 9})
    assert [(problem.prompt, problem.answer) for problem in made] == [
        ("0+3=", "3"), ("1+3=", "4"), ("2+3=", "5"), ("3+3=", "6"),
    ]  # fmt: skip
    right, polite, wrong, thought = verdicts(
        f"{tasks}:Sums", python, made[1], "4", "please", "5", "<think>4, no</think>4"
    )
    assert (right.reward, right.outcome) == (1.0, "right")
    assert right.parts == {"exact": 1.0, "polite": 0.0, "length": 1.0}
    assert (polite.reward, polite.outcome) == (0.25, "partial")
    assert (wrong.reward, thought.reward) == (0.0, 1.0)


@pytest.mark.slow
def test_rewards_that_need_a_runtime_are_refused_or_get_our_sandbox(tasks, python):
    reference = f"{tasks}:Programs"
    (problem,) = problems(reference, python)
    assert [turn["role"] for turn in problem.prompt] == ["system", "user"]
    with pytest.raises(ValueError, match=r"runs .* need a runtime .*runtime = true"):
        registry.load(f"prime:{reference}", {"python": python}).check_row(problem)
    box = SandboxSettings(SandboxSpec("local_process", {"trusted": True}))
    right, wrong, raises = verdicts(
        reference,
        python,
        problem,
        "print(2 + 2)",
        "print(5)",
        "import os; os._exit(0)",
        sandbox=box,
        runtime=True,
    )
    assert [one.reward for one in (right, wrong, raises)] == [1.0, 0.0, 0.0]


@pytest.mark.slow
def test_a_reward_that_fails_decides_nothing(tasks, python):
    (problem,) = problems(f"{tasks}:Broken", python)
    (verdict,) = verdicts(f"{tasks}:Broken", python, problem, "1")
    assert verdict.reward is None
    assert "the judge is away" in verdict.reason


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("Sums", {"config": {"mots": 3}}, "has no 'mots'"),
        ("Sum", {}, "did you mean 'Sums'"),
        ("SumTask", {}, r"expected a class of verifiers\.v1\.Taskset"),
        ("Sums", {"size": 0}, "expected a whole number"),
    ],
)
def test_a_wrong_request_is_one_clear_line(tasks, python, name, options, says):
    with pytest.raises(ConfigError, match=says):
        problems(f"{tasks}:{name}", python, **options)


def test_without_the_package_or_the_interpreter_the_line_says_what_to_do(tasks):
    with pytest.raises(ConfigError, match="set the option `python` to that environment's interpreter"):
        problems(f"{tasks}:Sums", "")
    with pytest.raises(ConfigError, match="cannot be started"):
        problems(f"{tasks}:Sums", "no/such/python")


def test_rows_from_elsewhere_are_refused():
    verifier = registry.load("prime:some.tasks:Set")  # the package is looked for in the worker, not here
    with pytest.raises(ValueError, match="needs the column 'prime'"):
        verifier.check_row(Problem("1", "2+2?", "4"))
