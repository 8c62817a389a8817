import re

import pytest

from verigrad.sandboxes.base import SandboxUnavailable
from verigrad.sandboxes.images import build


def test_the_name_tells_the_contents(monkeypatch, tmp_path):
    name = build.image_name()
    assert re.fullmatch(r"verigrad-sandbox:[0-9a-f]{12}", name)
    monkeypatch.setattr(build, "PACKAGES", tuple(reversed(build.PACKAGES)))
    assert build.image_name() == name
    monkeypatch.setattr(build, "PACKAGES", (*build.PACKAGES, "perl"))
    assert build.image_name() != name
    monkeypatch.undo()
    other = tmp_path / "Dockerfile"
    other.write_bytes(build.DOCKERFILE.read_bytes() + b"RUN true\n")
    monkeypatch.setattr(build, "DOCKERFILE", other)
    assert build.image_name() != name


def test_the_dockerfile_starts_from_the_image_that_is_pulled():
    assert f"FROM {build.BASE_IMAGE}\n" in build.DOCKERFILE.read_text()


def test_without_an_engine_one_line_says_where_none_answered(tmp_path):
    with pytest.raises(SandboxUnavailable, match=r"no Docker engine answered at unix:///.*nobody; start it"):
        build.build(f"unix://{tmp_path}/nobody")


def test_without_registry_and_root_one_line_says_so(monkeypatch):
    monkeypatch.setattr(build.shutil, "which", lambda name, path=None: f"/usr/sbin/{name}")
    monkeypatch.setattr(build.os, "geteuid", lambda: 1000)
    with pytest.raises(SandboxUnavailable, match="without root: debootstrap makes a root file system"):
        build._from_packages(None, "an-image:tag", lambda line: None)


def test_without_debootstrap_one_line_says_so(monkeypatch):
    monkeypatch.setattr(build.shutil, "which", lambda name, path=None: None)
    with pytest.raises(SandboxUnavailable, match="apt-get install debootstrap"):
        build._from_packages(None, "an-image:tag", lambda line: None)


@pytest.mark.docker
def test_building_again_does_nothing():
    told = []
    name = build.build(say=told.append)
    assert build.build(say=told.append) == name
    assert told[-1] == f"{name} is there"
