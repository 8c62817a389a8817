import json

import pytest

from verigrad.engine import cli, list_sandboxes
from verigrad.sandboxes import registry
from verigrad.sandboxes.base import Backend, SandboxUnavailable
from verigrad.sandboxes.images import build


class Fake(Backend):
    promises = "as much as it is told to"

    def __init__(self, name, reason):
        self.name, self.reason = name, reason

    def unavailable(self, options):
        return self.reason

    def open(self, **options):
        raise AssertionError("listing opens none")


@pytest.fixture
def machine(monkeypatch):
    """A machine on which sandboxes are as told: name -> why it does not work, or None."""

    def made(reasons):
        def load(name):
            if name not in reasons:
                raise ValueError("no module named so")
            return Fake(name, reasons[name])

        monkeypatch.setattr(registry, "load", load)

    return made


def listed(capsys, *words):
    parsed = cli.parse(["sandboxes", "--json", *words])
    status = parsed.run(parsed)
    return status, {row["name"]: row for row in json.loads(capsys.readouterr().out)}


def test_auto_takes_the_strongest_that_works(machine, capsys):
    machine({"container": "no engine", "bubblewrap": None, "local_process": None})
    status, rows = listed(capsys)
    assert status == 0
    assert [name for name, row in rows.items() if row["auto"]] == ["bubblewrap"]
    assert rows["container"]["why_not"] == "no engine"
    assert list(rows)[:2] == ["container", "bubblewrap"]  # strongest first


def test_auto_never_takes_local_process(machine, capsys):
    machine({"container": "no engine", "bubblewrap": "no bwrap", "local_process": None})
    status, rows = listed(capsys)
    assert status == 1
    assert not any(row["auto"] for row in rows.values())
    assert rows["local_process"]["works"]


def test_a_sandbox_that_cannot_be_loaded_is_listed_with_its_error(machine, capsys):
    machine({"container": None, "local_process": None})
    _, rows = listed(capsys)
    assert rows["bubblewrap"]["why_not"] == "cannot be loaded: no module named so"


def test_the_table_says_which_is_taken_and_why_others_are_not(machine, capsys):
    machine({"container": None, "bubblewrap": "no bwrap", "local_process": "not trusted"})
    parsed = cli.parse(["sandboxes"])
    assert parsed.run(parsed) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "auto" in next(line for line in lines if line.split()[0] == "container")
    assert "no bwrap" in next(line for line in lines if line.split()[0] == "bubblewrap")


def test_an_image_that_cannot_be_built_is_one_line_and_status_1(monkeypatch):
    def cannot(docker_host, *, say):
        raise SandboxUnavailable("no Docker engine answered at nowhere")

    monkeypatch.setattr(build, "build", cannot)
    parsed = cli.parse(["sandboxes", "--build"])
    with pytest.raises(list_sandboxes.WorkError, match="no Docker engine answered at nowhere"):
        parsed.run(parsed)
