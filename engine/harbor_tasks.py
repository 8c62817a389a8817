"""Folders of tasks as Harbor and terminal-bench lay them out -> rows for an agent, each with its check.

Harbor: task.toml, instruction.md, environment/Dockerfile, tests/test.sh (leaves reward.txt or reward.json),
solution/solve.sh. terminal-bench: task.yaml, Dockerfile, tests/test_outputs.py, solution.sh.

An image cannot be built in the middle of training. A Dockerfile that only copies files is followed; one that
installs something is refused unless `prepared` says that `sandbox.image` holds what it installs. The agent's
folder stands for /app (or the Dockerfile's WORKDIR), and paths to it, to /tests, /logs and /solution are
rewritten in texts and scripts, since nothing else can be written to. There is no network.
"""

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verigrad.engine.environment import Environment
from verigrad.engine.settings import ConfigError
from verigrad.sandboxes.base import HOME
from verigrad.verifiers.agent_script import CANNOT_CHECK

TESTS, LOGS, SOLUTION = ".tests", ".logs", ".solution"
IGNORED = {"FROM", "LABEL", "MAINTAINER", "EXPOSE", "CMD", "ENTRYPOINT", "USER", "SHELL", "STOPSIGNAL"}
RECIPES_OF_IMAGES = {"Dockerfile", "docker-compose.yaml", "docker-compose.yml", "compose.yaml"}
MAX_FILE = 1 << 20  # bytes of one file of a task
DEFAULT_SECONDS = 120.0  # of a check, where the task says nothing

# terminal-bench names no file for the reward: the tests' own report tells which passed. Neither the agent's
# modules nor its conftest.py or pytest.ini are taken up by pytest.
RUN_PYTEST = """\
python3 -I -c 'import pytest' || exit {cannot}
export PYTHONSAFEPATH=1 PYTHONNOUSERSITE=1
python3 -m pytest -q -c /dev/null --rootdir={tests} --confcutdir={tests} -p no:cacheprovider \\
  --junitxml={logs}/report.xml {tests}/test_outputs.py >&2
python3 -I - <<'END'
import pathlib
from xml.etree import ElementTree
bad = ("failure", "error", "skipped")
passed, failed = set(), set()
for case in ElementTree.parse("{logs}/report.xml").iter("testcase"):
    good = all(case.find(kind) is None for kind in bad)
    (passed if good else failed).add(case.get("name").split("[")[0])
wanted = set({names})
pathlib.Path("{logs}/reward.txt").write_text("1" if wanted and wanted <= passed - failed else "0")
END
"""


def tasks(
    *, seed: int, folder: str, names: Sequence[str] = (), prepared: bool = False
) -> list[dict[str, Any]]:
    """Rows of one task's folder, or of a folder of such folders, by name; `names` are the ones wanted.

    `prepared`: sandbox.image was built from the tasks' Dockerfile, its working folder holds their files.
    ConfigError names the task that cannot be had, and why.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise ConfigError(f"no folder {folder} (looked from {Path.cwd()}). Correct data.options.folder.")
    found = [root] if is_task(root) else sorted(path for path in root.iterdir() if is_task(path))
    if missing := sorted(set(names) - {path.name for path in found}):
        raise ConfigError(
            f"{folder} has no task {missing[0]!r}; it has {', '.join(p.name for p in found) or 'none'}"
        )
    rows = [row_of(path, prepared=prepared) for path in found if not names or path.name in names]
    if not rows:
        raise ConfigError(f"{folder} holds no task: expected folders with a task.toml or a task.yaml")
    return rows


def is_task(path: Path) -> bool:
    """Whether a folder holds a task."""
    return path.is_dir() and ((path / "task.toml").is_file() or (path / "task.yaml").is_file())


def row_of(path: Path, *, prepared: bool) -> dict[str, Any]:
    """One task as a row."""
    task = read_harbor(path) if (path / "task.toml").is_file() else read_terminal_bench(path)
    if task.image and not prepared:
        raise unprepared(path, f"it runs in an image of its own ({task.image})")
    image = read_image(path, task.context, prepared=prepared)
    rewrite = Rewrite(image.workdir)
    setup: dict[str, Any] = {"files": rewrite.files({**image.files})}
    if prepared:
        setup["commands"] = [f"cp -a {image.workdir}/. ."]
    check = {
        "script": rewrite(task.script),
        "language": "sh",
        "trust": "low",
        "files": {f"{TESTS}/{name}": rewrite(text) for name, text in task.tests.items()},
        "reward": [f"{LOGS}/verifier/reward.json", f"{LOGS}/verifier/reward.txt", f"{LOGS}/reward.txt"],
        "remove": [TESTS, LOGS],
        "limits": {"wall_s": task.seconds, "cpu_s": task.seconds},
    }
    meta: dict[str, Any] = {"task": path.name, "setup": setup, "check": check}
    if task.solution:
        meta["oracle"] = {
            "files": {f"{SOLUTION}/{name}": rewrite(text) for name, text in task.solution.items()},
            "commands": [f"bash {SOLUTION}/{task.solve}"],
        }
    return {"id": path.name, "prompt": rewrite(task.instruction), "meta": meta}


@dataclass(frozen=True, slots=True)
class Task:
    """What both formats tell."""

    instruction: str
    script: str  # leaves a reward
    tests: Mapping[str, str]
    solution: Mapping[str, str]
    solve: str  # of the solution, the script to run
    seconds: float  # of the check
    context: Path  # where the Dockerfile lies
    image: str = ""  # named instead of a Dockerfile


def read_harbor(path: Path) -> Task:
    """Harbor's folder."""
    try:
        settings = tomllib.loads((path / "task.toml").read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"task {path.name}: task.toml is not TOML: {error}") from None
    if settings.get("steps"):
        raise refusal(path, "it has several steps, which are not supported")
    checking, place = settings.get("verifier", {}), settings.get("environment", {})
    if checking.get("env"):
        raise refusal(path, "its tests want environment variables ([verifier] env), which none are given")
    tests = texts_below(path / "tests", path)
    if "test.sh" not in tests:
        raise refusal(path, "it has no tests/test.sh")
    return Task(
        instruction=required(path / "instruction.md"),
        script=f"mkdir -p {LOGS}/verifier\n{tests['test.sh']}",
        tests=tests,
        solution=texts_below(path / "solution", path),
        solve="solve.sh",
        seconds=seconds_of(checking.get("timeout_sec"), path),
        context=path / "environment",
        image=str(place.get("docker_image") or ""),
    )


def read_terminal_bench(path: Path) -> Task:
    """terminal-bench's first format: its tests are pytest functions; run-tests.sh installs, and is left."""
    import yaml  # type: ignore[import-untyped]

    try:
        settings = yaml.safe_load(required(path / "task.yaml"))
    except yaml.YAMLError as error:
        raise ConfigError(f"task {path.name}: task.yaml is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(settings, dict) or not isinstance(settings.get("instruction"), str):
        raise refusal(path, "its task.yaml has no instruction")
    if settings.get("parser_name", "pytest") != "pytest":
        raise refusal(path, f"its tests are read by {settings['parser_name']!r}, and only pytest's are known")
    tests = texts_below(path / "tests", path)
    if "test_outputs.py" not in tests:
        raise refusal(path, "it has no tests/test_outputs.py")
    solution = path / "solution.sh"
    return Task(
        instruction=settings["instruction"],
        script=RUN_PYTEST.format(
            logs=LOGS,
            tests=TESTS,
            cannot=CANNOT_CHECK,
            names=json.dumps(test_names(tests["test_outputs.py"])),
        ),
        tests=tests,
        solution={"solution.sh": required(solution)} if solution.is_file() else {},
        solve="solution.sh",
        seconds=seconds_of(settings.get("max_test_timeout_sec"), path),
        context=path,
    )


def test_names(source: str) -> list[str]:
    """The test functions of a file, each of which must pass."""
    return sorted(set(re.findall(r"^[ \t]*(?:async )?def (test\w*)\(", source, re.MULTILINE)))


@dataclass(frozen=True, slots=True)
class Image:
    """What a Dockerfile puts where, as far as it can be followed."""

    workdir: str
    files: Mapping[str, str]  # path below the agent's folder -> text


def read_image(path: Path, context: Path, *, prepared: bool) -> Image:
    """Follow the Dockerfile's WORKDIR and COPY; ConfigError for one that does more, unless `prepared`."""
    dockerfile = context / "Dockerfile"
    if not dockerfile.is_file():
        if any((context / name).is_file() for name in RECIPES_OF_IMAGES) and not prepared:
            raise unprepared(path, "its place is described by a compose file")
        return Image("/app", texts_below(context, path) if context != path else {})
    workdir, files = "/app", dict[str, str]()
    for word, rest in instructions(required(dockerfile)):
        if word == "WORKDIR":
            workdir = rest.strip().rstrip("/") or "/"
        elif word in ("COPY", "ADD") and not prepared:
            files |= copied(rest.split(), context, workdir, path)
        elif word not in IGNORED and not prepared:
            raise unprepared(path, f"its Dockerfile does more than copy files ({word} {rest[:40]})")
    return Image(workdir, {} if prepared else files)


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction in capitals, its arguments) of a Dockerfile."""
    joined = re.sub(r"\\\s*\n", " ", text)
    lines = [line.strip() for line in joined.splitlines()]
    split = (line.partition(" ") for line in lines if line and not line.startswith("#"))
    return [(word.upper(), rest.strip()) for word, _, rest in split]


def copied(words: list[str], context: Path, workdir: str, path: Path) -> dict[str, str]:
    """The files that one COPY puts below the working folder."""
    words = [word for word in words if not word.startswith(("--chown", "--chmod"))]
    if len(words) < 2 or words[0].startswith(("--", "[", "http")):
        raise unprepared(
            path, f"its Dockerfile copies in a way that is not followed ({' '.join(words)[:40]})"
        )
    *sources, target = words
    absolute = target if target.startswith("/") else f"{workdir}/{target}"
    below = f"{absolute.replace('/./', '/').removesuffix('/.').rstrip('/')}/".removeprefix(f"{workdir}/")
    if below.startswith("/"):
        raise unprepared(path, f"its Dockerfile copies to {target}, outside its working folder {workdir}")
    files: dict[str, str] = {}
    for source in sources:
        matches = (
            sorted(context.glob(source.removeprefix("./").rstrip("/") or ".")) if source != "." else [context]
        )
        if not matches or any(not one.resolve().is_relative_to(context.resolve()) for one in matches):
            raise unprepared(path, f"its Dockerfile copies {source}, which is not there")
        for match in matches:
            if match.is_dir():
                files |= {f"{below}{name}": text for name, text in texts_below(match, path).items()}
            elif target.endswith(("/", ".")) or len(sources) > 1:
                files[f"{below}{match.name}"] = text_of(match, path)
            else:
                files[below.rstrip("/")] = text_of(match, path)
    return files


class Rewrite:
    """Texts with the absolute paths that a task knows replaced by those they have here."""

    def __init__(self, workdir: str) -> None:
        self.paths = {"/tests": f"{HOME}/{TESTS}", "/logs": f"{HOME}/{LOGS}",
                      "/solution": f"{HOME}/{SOLUTION}", "/oracle": f"{HOME}/{SOLUTION}"}  # fmt: skip
        if workdir not in ("/", HOME):
            self.paths[workdir] = HOME
        longest_first = sorted(self.paths, key=len, reverse=True)
        self.pattern = re.compile(
            rf"(?<![\w.\-/])(?:{'|'.join(map(re.escape, longest_first))})(?![\w\-]|\.\w)"
        )

    def __call__(self, text: str) -> str:
        return self.pattern.sub(
            lambda found: self.paths[found[0]],
            text.replace("${TEST_DIR}", "/tests").replace("$TEST_DIR", "/tests"),
        )

    def files(self, files: Mapping[str, str]) -> dict[str, str]:
        """Each text; names stay."""
        return {name: self(text) for name, text in files.items()}


def texts_below(folder: Path, task: Path) -> dict[str, str]:
    """Path from the folder -> text of every file in it but what an image is built from."""
    if not folder.is_dir():
        return {}
    # A link could lead to a file of this machine's.
    there = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    files = sorted(path for path in there if path.name not in RECIPES_OF_IMAGES)
    return {path.relative_to(folder).as_posix(): text_of(path, task) for path in files}


def text_of(path: Path, task: Path) -> str:
    """A file's text; ConfigError for one that is none."""
    try:
        if path.stat().st_size > MAX_FILE:
            raise refusal(task, f"{path.name} is larger than {MAX_FILE} bytes")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise refusal(task, f"{path.name} is not text") from None


def required(path: Path) -> str:
    """The text of a file that a task must have."""
    if not path.is_file():
        raise ConfigError(f"task {path.parent.name} has no {path.name}. Add it, or leave the task out.")
    return path.read_text(encoding="utf-8")


def seconds_of(value: Any, path: Path) -> float:
    """Seconds of a check."""
    if value is None:
        return DEFAULT_SECONDS
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e6:
        raise ConfigError(f"task {path.name}: the tests' timeout is {value!r}; expected a number of seconds")
    return float(value)


def refusal(path: Path, why: str) -> ConfigError:
    """Why a task cannot be had."""
    return ConfigError(f"task {path.name}: {why}. Mend it, or leave it out with data.options.names.")


def unprepared(path: Path, why: str) -> ConfigError:
    """Why a task cannot be had without an image that somebody builds."""
    return ConfigError(
        f"task {path.name}: {why}. Leave it out with data.options.names, or build its image, set "
        "sandbox.image to it and data.options.prepared = true."
    )


HARBOR = Environment(rows=tasks, tools=("shell", "python", "edit_file"), max_turns=30)
