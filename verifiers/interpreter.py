"""A Python interpreter, ours or of another environment -> the command and variables to run our modules in it.

Packages that cannot live beside ours (their pins contradict) live in an environment of their own. There,
`verigrad.verifiers` and `verigrad.sandboxes` are found where they lie, and nothing else of ours is.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Makes the two rooms importable by their names without putting a folder of ours on the path.
BOOT = """\
import json, runpy, sys, types
for name, path in json.loads(sys.argv.pop(1)).items():
    sys.modules[name] = room = types.ModuleType(name)
    room.__path__ = path
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""
THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def command(python: str, module: str) -> list[str]:
    """What to run to start `module` of verigrad.verifiers; `python` empty is this interpreter."""
    if not python:
        return [sys.executable, "-P", "-m", module]
    verifiers = Path(__file__).resolve().parent
    rooms = {"verigrad": [], "verigrad.verifiers": [str(verifiers)]}
    rooms["verigrad.sandboxes"] = [str(_sandboxes(verifiers))]
    return [python, "-P", "-c", BOOT, json.dumps(rooms), module]


def environment(python: str, *, cwd: str) -> dict[str, str]:
    """The variables to start it with: one thread, a fixed order of sets, and what this process can import.

    Another environment gets nothing of ours to import: its packages must be its own.
    """
    # vLLM's CPU build preloads allocators for its own workers, by way of the environment.
    dropped = {"LD_PRELOAD", *(("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV") if python else ())}
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    # The child must find what the parent finds, also what was put on sys.path by hand.
    path = {} if python else {"PYTHONPATH": os.pathsep.join(os.path.join(cwd, entry) for entry in sys.path)}
    return {**kept, **THREADS, **path, "PYTHONHASHSEED": "0"}


def ask(python: str, module: str, request: Mapping[str, Any], *, limit_s: float = 1800) -> Any:
    """What `module` answers to a JSON request on its standard input, as JSON on its standard output.

    ValueError with its last line when it fails. What its code prints must go to standard error.
    """
    try:
        done = subprocess.run(
            command(python, module),
            input=json.dumps(request).encode(),
            capture_output=True,
            env=environment(python, cwd=os.getcwd()),
            timeout=limit_s,
        )
    except OSError as error:
        raise ValueError(f"the interpreter {python} cannot be started ({error}); correct its path") from error
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"{module} gave no answer in {limit_s:g} s; ask for less") from error
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise ValueError((lines[-1] if lines else f"ended with status {done.returncode}")[:500])
    return json.loads(done.stdout)


def answer_with(make: Any) -> None:
    """The other side of `ask`: call `make(**request)` and write what it returns; one line when it cannot."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what task sets print must not break into the answer
    try:
        answer = json.dumps(make(**json.load(sys.stdin)))
    except (ValueError, ImportError) as error:
        sys.exit(" ".join(str(error).split()))
    with out:
        out.write(answer)


def _sandboxes(verifiers: Path) -> Path:
    """The other room's folder, wherever it is installed."""
    from verigrad.sandboxes import base

    return Path(base.__file__).resolve().parent
