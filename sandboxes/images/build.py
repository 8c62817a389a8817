"""A Docker engine -> the image that sandboxes run in: from a public image, or from Debian's packages.

The name says what is in it (`image_name`), so an image that is there is the right one. Where a registry
answers, the Dockerfile beside this file is built. Where none does, debootstrap makes the same from the
distribution's packages: that takes root, `debootstrap` and a Debian mirror, and about a minute.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from verigrad.sandboxes.base import SandboxUnavailable

REPOSITORY = "verigrad-sandbox"
DOCKERFILE = Path(__file__).with_name("Dockerfile")
BASE_IMAGE = "python:3.11-slim-bookworm"  # the Dockerfile's FROM
SUITE = "bookworm"
PACKAGES = (
    *("python3", "python3-venv", "python3-distutils", "python3-lib2to3", "python3-gdbm", "python3-pytest"),
    *("bash", "coreutils", "diffutils", "file", "findutils", "g++", "gawk", "grep", "patch", "procps", "sed"),
    "tar",
)
UNUSED = (
    "var/cache/apt",
    "var/lib/apt/lists",
    "var/log",
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
)
MIRROR = "http://deb.debian.org/debian"
MIRROR_VARIABLE = "VERIGRAD_DEBIAN_MIRROR"  # another mirror of Debian
SYSTEM_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"  # where system tools lie, for any user
PATH_INSIDE = "/usr/local/bin:/usr/bin:/bin"
SAY_EVERY_S = 10.0
PULL_S = 300.0


def image_name() -> str:
    """Repository and tag; the tag is a hash of everything the image is made from."""
    made_from = b"\0".join(
        (DOCKERFILE.read_bytes(), " ".join((SUITE, *sorted(PACKAGES), *sorted(UNUSED))).encode())
    )
    return f"{REPOSITORY}:{hashlib.sha256(made_from).hexdigest()[:12]}"


def build(docker_host: str = "", *, say: Callable[[str], None] = print) -> str:
    """Have the image on that engine (empty: the environment's); returns its name, at once when it is there.

    Raises SandboxUnavailable, in one line, when no engine answers or neither way works.
    """
    engine = connect(docker_host)
    name = image_name()
    if has_image(engine, name):
        say(f"{name} is there")
        return name
    started = time.monotonic()
    why_not = _from_registry(engine, name, say)
    if why_not is not None:
        say(f"no image from a registry: {why_not}")
        _from_packages(engine, name, say)
    size = engine.images.get(name).attrs["Size"] / 1e6
    say(f"{name}: {size:.0f} MB in {time.monotonic() - started:.0f} s")
    return name


def connect(docker_host: str = "") -> Any:
    """A client of the engine at that address; SandboxUnavailable when none answers."""
    import docker

    where = docker_host or os.environ.get("DOCKER_HOST") or "its usual socket"
    try:
        engine = docker.DockerClient(docker_host) if docker_host else docker.from_env()
        engine.ping()
    except docker.errors.DockerException as error:
        raise SandboxUnavailable(
            f"no Docker engine answered at {where}; start it, or set DOCKER_HOST or sandbox.docker_host "
            f"({one_line(error)})"
        ) from error
    return engine


def has_image(engine: Any, name: str) -> bool:
    """Whether the engine has it."""
    import docker

    try:
        engine.images.get(name)
    except docker.errors.ImageNotFound:
        return False
    return True


def _from_registry(engine: Any, name: str, say: Callable[[str], None]) -> str | None:
    """Build the Dockerfile; why it could not be done, or None."""
    import docker
    import requests

    say(f"asking a registry for {BASE_IMAGE}")
    timeout, engine.api.timeout = engine.api.timeout, PULL_S
    try:
        engine.images.pull(BASE_IMAGE)
        say("building the Dockerfile, some minutes")
        # network: an engine without a bridge has no other
        engine.images.build(path=str(DOCKERFILE.parent), tag=name, rm=True, network_mode="host")
    except (docker.errors.DockerException, requests.RequestException) as error:
        return one_line(error)
    finally:
        engine.api.timeout = timeout
    return None


def _from_packages(engine: Any, name: str, say: Callable[[str], None]) -> None:
    if not shutil.which("debootstrap", path=SYSTEM_PATH):
        raise SandboxUnavailable(
            f"{name} cannot be made from packages without debootstrap; apt-get install debootstrap, or let "
            "the engine reach a registry"
        )
    if os.geteuid() != 0:
        raise SandboxUnavailable(
            f"{name} cannot be made from packages without root: debootstrap makes a root file system; run "
            "`verigrad sandboxes --build` once as root, or let the engine reach a registry"
        )
    with tempfile.TemporaryDirectory(prefix="verigrad-image-") as folder:
        root = Path(folder) / "root"
        _debootstrap(root, say)
        _tidy(root)
        say("importing it into the engine")
        _import(engine, root, name)


def _debootstrap(root: Path, say: Callable[[str], None]) -> None:
    mirror = os.environ.get(MIRROR_VARIABLE) or MIRROR
    command = [
        "debootstrap",
        "--variant=minbase",
        f"--include={','.join(PACKAGES)}",
        SUITE,
        str(root),
        mirror,
    ]
    say(f"making it from the packages of {mirror}, about a minute")
    last, told = "", time.monotonic()
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PATH": SYSTEM_PATH},
        text=True,
        errors="replace",
    ) as work:
        assert work.stdout is not None
        for line in work.stdout:
            last = line.strip() or last
            if time.monotonic() - told > SAY_EVERY_S:
                say(f"  {last}")
                told = time.monotonic()
    if work.returncode:
        raise SandboxUnavailable(
            f"debootstrap ended with status {work.returncode}: {last}; it needs a mirror of Debian "
            f"({MIRROR_VARIABLE}, now {mirror}) and a temporary folder (TMPDIR) that may hold devices"
        )


def _tidy(root: Path) -> None:
    """Less to carry, and nothing that runs with more rights than its caller."""
    for unused in UNUSED:
        shutil.rmtree(root / unused, ignore_errors=True)
        (root / unused).mkdir(parents=True, exist_ok=True)
    (root / "box").mkdir(exist_ok=True)
    for folder, _, files in os.walk(root):
        for file in files:
            path = Path(folder) / file
            mode = path.lstat().st_mode
            if path.is_file() and not path.is_symlink() and mode & 0o6000:
                path.chmod(mode & 0o1777)


def _import(engine: Any, root: Path, name: str) -> None:
    import docker

    repository, tag = name.split(":")
    changes = [f"ENV PATH={PATH_INSIDE} LANG=C.UTF-8", 'CMD ["python3"]']
    pack = ["tar", "--numeric-owner", "--exclude=./dev/*", "--exclude=./proc/*", "-C", str(root), "-c", "."]
    with subprocess.Popen(pack, stdout=subprocess.PIPE) as packing:
        try:
            said = engine.api.import_image_from_stream(
                packing.stdout, repository=repository, tag=tag, changes=changes
            )
        except docker.errors.DockerException as error:
            packing.kill()
            raise SandboxUnavailable(f"the engine took no image: {one_line(error)}") from error
    if packing.returncode or '"error"' in said:
        raise SandboxUnavailable(f"the engine took no image: {said.strip()[-300:]}")


def one_line(error: BaseException) -> str:
    """An error's text without line breaks, cut short; only the system's where that is what lies below it."""
    below: BaseException | None = error
    while below is not None:
        if isinstance(below, OSError) and below.strerror:
            return below.strerror
        below = below.__cause__ or below.__context__
    return " ".join(str(error).split())[:300]
