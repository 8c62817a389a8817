"""A row's `meta.check` -> the steps or the script that judge an agent's final state, every part checked."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from verigrad.sandboxes.base import Limits
from verigrad.verifiers.agent_match import DETAILS, MATCHERS, check_matchers

STEP_KEYS = {"run", "stdin", "files", "limits", "exit", "file", "exists", "answer", *MATCHERS, *DETAILS}
OF_RUN = ("stdin", "files", "limits", "exit")
SCRIPT_KEYS = {"script", "language", "files", "limits", "reward", "remove", "trust"}
LANGUAGES = ("python", "sh")
SCRIPT_LIMITS = Limits(wall_s=30.0, cpu_s=30.0, output_bytes=32 << 20)


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that must hold of the final state; without `run` nothing is executed."""

    expects: Mapping[str, Any]  # matchers, see agent_match
    run: tuple[str, ...] = ()
    stdin: bytes = b""
    files: Mapping[str, str] = field(default_factory=dict)  # put there just before the command
    limits: Limits = field(default_factory=Limits)
    exit_code: int | None = 0  # None: any
    file: str = ""  # looked at, after the command when there is one
    exists: bool = True
    answer: bool = False  # the final reply is looked at


@dataclass(frozen=True, slots=True)
class Script:
    """A program of ours that looks at the final state and decides."""

    source: str
    language: str
    files: Mapping[str, str]
    limits: Limits
    reward: tuple[str, ...] = ()  # sh: where it leaves its reward, the first that is there
    remove: tuple[str, ...] = ()  # sh: what the attempt left there is taken away first


def read_check(check: Any) -> tuple[Step, ...] | Script:
    """The check of a row, or JSON of it; ValueError says what is wrong with it, in one line."""
    if isinstance(check, str):
        check = _json_or_script(check)
    if isinstance(check, Mapping) and "script" in check:
        return _script(check)
    if isinstance(check, Mapping):
        check = [check]
    if not isinstance(check, Sequence) or not check:
        raise ValueError(f"meta.check = {check!r:.60}; expected a list of steps, or a script")
    return tuple(_step(step, f"meta.check step {number}") for number, step in enumerate(check, 1))


def _step(step: Any, where: str) -> Step:
    if not isinstance(step, Mapping):
        raise ValueError(f"{where} is {step!r:.60}; expected an object with run, file or answer")
    step = _given(step)
    if unknown := set(step) - STEP_KEYS:
        raise ValueError(f"{where} has {sorted(unknown)[0]!r}; a step has {', '.join(sorted(STEP_KEYS))}")
    check_matchers(step, where)
    looks_at = [name for name in ("run", "file", "answer") if name in step]
    if not looks_at or ("answer" in step and len(looks_at) > 1):
        raise ValueError(
            f"{where} looks at {looks_at or 'nothing'}; expected run, file, run and file, or answer"
        )
    if "run" not in step and (idle := [name for name in OF_RUN if name in step]):
        raise ValueError(f"{where}: {idle[0]} has no effect without run; remove it")
    if "answer" in step and step["answer"] is not True:
        raise ValueError(f"{where}: answer = {step['answer']!r:.40}; expected true, with equals beside it")
    if not isinstance(exists := step.get("exists", True), bool) or ("exists" in step and "file" not in step):
        raise ValueError(f"{where}: exists = {exists!r:.40}; expected true or false, beside a file")
    expects = {name: step[name] for name in (*MATCHERS, *DETAILS) if name in step}
    if not exists and expects:
        raise ValueError(f"{where}: nothing can be expected of a file that must not exist")
    if "file" in step and "exists" not in step and not expects:
        raise ValueError(f"{where} expects nothing of the file; add equals, contains, lacks, json or exists")
    return Step(
        expects=expects,
        run=_command(step.get("run", []), where),
        stdin=_text(step.get("stdin", ""), f"{where}: stdin").encode(),
        files=read_files(step.get("files", {}), where),
        limits=_limits(step.get("limits"), where),
        exit_code=_exit(step.get("exit", 0), where),
        file=_path(step["file"], f"{where}: file") if "file" in step else "",
        exists=exists,
        answer="answer" in step,
    )


def _json_or_script(text: str) -> Any:
    if text.lstrip().startswith(("[", "{")):
        try:
            return json.loads(text)
        except ValueError:
            pass  # a script after all
    return {"script": text}


def _given(row: Mapping[str, Any]) -> dict[str, Any]:
    """What is there: Arrow gives every row the keys of all, as None where it has none of its own."""
    found = {}
    for key, value in row.items():
        all_none = isinstance(value, Mapping) and value and all(one is None for one in value.values())
        if value is not None and (key == "json" or not all_none):
            found[key] = value
    return found


def _script(check: Mapping[str, Any]) -> Script:
    check = _given(check)
    if unknown := set(check) - SCRIPT_KEYS:
        raise ValueError(
            f"meta.check has {sorted(unknown)[0]!r}; a script has {', '.join(sorted(SCRIPT_KEYS))}"
        )
    source, language = _text(check["script"], "meta.check.script"), check.get("language", "python")
    if language not in LANGUAGES or not source.strip():
        raise ValueError(f"meta.check: language = {language!r:.40}; expected python or sh, and a script")
    if language == "python":
        try:
            compile(source, "check.py", "exec")
        except (SyntaxError, ValueError) as error:
            raise ValueError(f"meta.check.script is not Python: {error}") from None
        if unused := [name for name in ("reward", "remove", "trust") if name in check]:
            raise ValueError(f"meta.check: {unused[0]} has no effect on a Python script; remove it")
    elif check.get("trust") != "low":
        raise ValueError(
            "meta.check: a shell script shares its box with what the agent left and may run; say so with "
            "trust = 'low', or use steps or a Python script instead"
        )
    elif not check.get("reward"):
        raise ValueError(
            "meta.check: a shell script needs reward, the file or files it leaves its verdict in"
        )
    return Script(
        source,
        language,
        read_files(check.get("files", {}), "meta.check"),
        _limits(check.get("limits"), "meta.check", SCRIPT_LIMITS),
        tuple(_path(path, "meta.check: reward") for path in _several(check.get("reward", []))),
        tuple(_path(path, "meta.check: remove") for path in _several(check.get("remove", []))),
    )


def read_files(files: Any, where: str) -> dict[str, str]:
    """A row's `{path: text}`; ValueError for anything else. What Arrow filled up with None is left out."""
    if not isinstance(files, Mapping):
        raise ValueError(f"{where}: files = {files!r:.60}; expected an object of path and text")
    found = {path: text for path, text in files.items() if text is not None}
    for path, text in found.items():
        _path(path, f"{where}: files")
        _text(text, f"{where}: files[{path!r}]")
    return found


def _path(path: Any, where: str) -> str:
    text = _text(path, where)
    if not text or text.startswith("/") or ".." in text.split("/") or "\0" in text:
        raise ValueError(f"{where} = {text!r:.60}; expected a path below the agent's folder, such as out.txt")
    return text


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where} = {value!r:.60}; expected text")
    return value


def _command(value: Any, where: str) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ValueError(f'{where}: run = {value!r:.60}; expected a list, as in ["python3", "main.py"]')
    return tuple(_text(word, f"{where}: run") for word in value)


def _limits(value: Any, where: str, default: Limits | None = None) -> Limits:
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f"{where}: limits = {value!r:.60}; expected an object")
    given = {name: one for name, one in (value or {}).items() if one is not None}
    try:
        return Limits.of(given, default=default)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _exit(value: Any, where: str) -> int | None:
    if value == "any":
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{where}: exit = {value!r:.40}; expected a whole number or 'any'")
    return value


def _several(value: Any) -> Sequence[Any]:
    return [value] if isinstance(value, str) else value
