"""A sandbox's name to a Backend, and which one `auto` takes."""

import pytest

from verigrad.sandboxes import registry
from verigrad.sandboxes.base import Backend, SandboxSpec, SandboxUnavailable

PLUGIN = """
from verigrad.sandboxes.base import Backend

class Mine(Backend):
    name, promises = "mine", "nothing"

    def unavailable(self, options):
        return options.get("why")

    def open(self, **options):
        raise AssertionError("choosing opens none")

not_one = 3
"""


@pytest.fixture
def plugin(tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    return str(tmp_path / "mine.py")


class Never(Backend):
    name, promises = "never", "nothing"

    def unavailable(self, options):
        return "it is broken"

    def open(self, **options):
        raise AssertionError("never")


class Always(Never):
    def unavailable(self, options):
        return None


@pytest.mark.parametrize("name", registry.BUILTIN)
def test_each_built_in_sandbox_loads_under_its_own_name(name):
    backend = registry.load(name)
    assert backend.name == name
    assert backend.promises


def test_a_file_and_a_package_are_found(plugin):
    assert registry.load(f"{plugin}:Mine").promises == "nothing"
    assert registry.load("verigrad.sandboxes.local_process:LocalProcess").name == "local_process"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("contaner", "did you mean 'container'"),
        ("zzz", "known: auto, bubblewrap, container, local_process"),
        ("nowhere.py:Mine", "does not exist"),
        ("no.such.module:Mine", "No module named"),
    ],
)
def test_a_wrong_name_is_told_with_what_would_be_right(name, told):
    with pytest.raises(ValueError, match=told):
        registry.load(name)


def test_what_is_no_backend_is_refused(plugin):
    with pytest.raises(ValueError, match="expected a Backend"):
        registry.load(f"{plugin}:not_one")


def backends(monkeypatch, **found):
    monkeypatch.setattr(registry, "load", lambda name: found[name]())


def test_auto_takes_the_strongest_that_works_and_says_which(monkeypatch):
    backends(monkeypatch, container=Always, bubblewrap=Always)
    assert registry.choose(SandboxSpec("auto")).backend == "container"
    backends(monkeypatch, container=Never, bubblewrap=Always)
    assert registry.choose(SandboxSpec("auto", {"cpus": 2})) == SandboxSpec("bubblewrap", {"cpus": 2})


def test_auto_never_takes_the_one_without_walls(monkeypatch):
    backends(monkeypatch, container=Never, bubblewrap=Never, local_process=Always)
    with pytest.raises(SandboxUnavailable, match=r"container: it is broken; bubblewrap: it is broken"):
        registry.choose(SandboxSpec("auto", {"trusted": True}))


def test_a_named_sandbox_is_never_replaced_by_another(monkeypatch):
    backends(monkeypatch, container=Never, bubblewrap=Always)
    with pytest.raises(SandboxUnavailable, match="'container' does not work here: it is broken"):
        registry.choose(SandboxSpec("container"))


def test_states_name_every_sandbox_the_strongest_first():
    names = [name for name, _, _ in registry.states({})]
    assert names[:2] == ["container", "bubblewrap"]
    assert sorted(names) == sorted(registry.available())
