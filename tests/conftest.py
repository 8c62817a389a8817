import importlib.util
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from filelock import FileLock

from verigrad.engine.machine import prepare_process
from verigrad.sandboxes import registry
from verigrad.sandboxes.base import SandboxSpec, SandboxUnavailable
from verigrad.sandboxes.bubblewrap import Bubblewrap
from verigrad.sandboxes.images import build

prepare_process()

REQUIRE_ALL = os.environ.get("VERIGRAD_REQUIRE_ALL") == "1"


def has_docker():
    return (
        bool(shutil.which("docker"))
        and subprocess.run(["docker", "info"], capture_output=True).returncode == 0
    )


def pytest_collection_modifyitems(items):
    """Without vLLM, Docker or bubblewrap their tests skip; in CI (VERIGRAD_REQUIRE_ALL=1) they fail."""
    if (
        any(item.get_closest_marker(name) for item in items for name in ("docker", "sandbox"))
        and has_docker()
    ):
        with FileLock(Path(tempfile.gettempdir()) / "verigrad-image.lock"):  # tests run two at a time
            build.build()  # a minute or two the first time; without it every test of a container would fail
    if REQUIRE_ALL:
        return
    missing = {}
    if importlib.util.find_spec("vllm") is None:
        missing["vllm"] = "vLLM is not installed"
    if any(item.get_closest_marker("docker") for item in items) and not has_docker():
        missing["docker"] = "no Docker engine answers"
    if any(item.get_closest_marker("bubblewrap") for item in items) and (why := Bubblewrap().unavailable({})):
        missing["bubblewrap"] = why
    if any(item.get_closest_marker("sandbox") for item in items):
        try:
            registry.choose(SandboxSpec(registry.AUTO))
        except SandboxUnavailable as error:
            missing["sandbox"] = str(error)
    for item in items:
        for name, reason in missing.items():
            if item.get_closest_marker(name):
                # a laptop without the part can test the rest; CI never gets here (REQUIRE_ALL)
                item.add_marker(pytest.mark.skip(reason=reason))


USERS_CACHE = os.environ.get("VERIGRAD_CACHE")


@pytest.fixture
def users_cache(own_cache, monkeypatch):
    """What a user has made before: the cache from outside the tests."""
    if USERS_CACHE is None:
        monkeypatch.delenv("VERIGRAD_CACHE")
    else:
        monkeypatch.setenv("VERIGRAD_CACHE", USERS_CACHE)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Models made by tests go to a folder of the test run, shared by its tests and nobody else."""
    root = tmp_path_factory.getbasetemp().parent / f"verigrad-cache-{os.getpid()}"
    monkeypatch.setenv("VERIGRAD_CACHE", str(root))
