"""Every promise is attacked for real on each backend; without its wall, the attack is seen to succeed."""

from pathlib import Path

import pytest

from verigrad.sandboxes import bubblewrap, conformance, zygote_client
from verigrad.sandboxes.base import SandboxSpec, SandboxUnavailable

PROMISES = conformance.promises()
WEAKER = f"{Path(__file__).with_name('weaker_sandboxes.py')}:Weaker"
# What local_process is documented not to keep; only attacks that leave nothing on this machine.
NOT_KEPT = [
    "abstract_sockets",
    "files_of_the_host",
    "loopback_of_the_host",
    "no_signals_to_others",
    "processes_of_the_host",
]
KEPT_WITHOUT_WALLS = [
    "background_processes",
    "binary_output",
    "cpu_time",
    "daemons",
    "exact_output_limit",
    "exit_codes",
    "file_size",
    "links_are_not_read",
    "links_are_not_written",
    "memory_of_a_process",
    "no_path_leads_outside",
    "orphan_does_not_delay",
    "wall_time",
    "wall_time_signals_ignored",
]


@pytest.fixture(scope="module")
def results():
    """Backend -> its result of each check, all of them run once."""
    found = {}

    def of(backend):
        if backend not in found:
            found[backend] = {row.name: row for row in conformance.run(SandboxSpec(backend))}
        return found[backend]

    return of


def test_there_are_enough_promises_and_each_is_one_sentence():
    assert len(PROMISES) >= 50
    for name, promise in PROMISES.items():
        assert promise.endswith("."), name
        assert len(promise) <= 120, name


@pytest.mark.bubblewrap
@pytest.mark.parametrize("name", PROMISES)
def test_bubblewrap_keeps(name, results):
    row = results("bubblewrap")[name]
    assert row.status == "held", row.detail


@pytest.mark.docker
@pytest.mark.parametrize("name", PROMISES)
def test_container_keeps(name, results):
    row = results("container")[name]
    assert row.status == "held", row.detail


def statuses(spec, names):
    return {row.name: row.status for row in conformance.run(spec, only=names)}


def test_local_process_keeps_what_it_promises_and_not_what_it_does_not():
    trusted = SandboxSpec("local_process", {"trusted": True})
    assert statuses(trusted, NOT_KEPT) == dict.fromkeys(NOT_KEPT, "broken")
    assert statuses(trusted, KEPT_WITHOUT_WALLS) == dict.fromkeys(KEPT_WITHOUT_WALLS, "held")


@pytest.mark.bubblewrap
@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("NeverWipes", ["files_are_wiped", "anything_can_be_wiped"]),
        ("LeaksTheEnvironment", ["environment_of_the_judge"]),
        ("FollowsLinks", ["links_are_not_read", "no_path_leads_outside", "missing_file"]),
        ("ForgetsLimits", ["wall_time", "file_size", "processes", "exact_output_limit"]),
        ("SaysAllIsWell", ["exit_codes", "own_signals", "wall_time", "memory_of_a_process", "output_flood"]),
        ("ReadsText", ["binary_output"]),
    ],
)
def test_a_sandbox_that_breaks_a_promise_is_found_out(kind, names):
    assert statuses(SandboxSpec(WEAKER, {"kind": kind}), names) == dict.fromkeys(names, "broken")


@pytest.mark.bubblewrap
def test_a_sandbox_that_dies_has_neither_kept_nor_broken_a_promise():
    spec = SandboxSpec(WEAKER, {"kind": "IsAlwaysLost"})
    (row,) = conformance.run(spec, only=["exit_codes"])
    assert row.status == "failed to run"
    assert "the engine is gone" in row.detail


# (module, what stands there, what is put in its place, the promises that then break)
WALLS_TAKEN_DOWN = {
    "seccomp": (
        "zygote_namespace",
        "zygote_seccomp.install(also=zygote_seccomp.WITHOUT_A_CGROUP)",
        "pass",
        ["no_user_namespaces", "no_kernel_playground", "memory_that_nobody_maps"],
    ),
    "capabilities": (
        "zygote_namespace",
        '    """All of them, in every set."""',
        "    return",
        ["not_root"],
    ),
    "ipc namespace": (
        "zygote_namespace",
        "NEW_MOUNTS | NEW_IPC | NEW_PROCESSES",
        "NEW_MOUNTS | NEW_PROCESSES",
        ["message_queues"],
    ),
    "links when reading": (
        "zygote_files",
        "READ = os.O_RDONLY | os.O_NOFOLLOW |",
        "READ = os.O_RDONLY |",
        ["links_are_not_read"],
    ),
    "wiping": ("zygote", "        self.wall.wipe()\n", "", ["files_are_wiped", "home_is_as_new"]),
    "file size": ("zygote_program", "resource.RLIMIT_FSIZE: ", "resource.RLIMIT_CORE: ", ["file_size"]),
    "memory": ("zygote_program", "resource.RLIMIT_AS: ", "resource.RLIMIT_CORE: ", ["memory_of_a_process"]),
    "totals": ("zygote_namespace", "if total > self.memory_mb", "if False", ["memory_of_all_processes"]),
    "inodes": ("zygote_namespace", ",nr_inodes={self.disk_mb * FILES_PER_MB}", "", ["many_files"]),
}


def take_down(monkeypatch, module, old, new):
    """Have the zygote's source sent without that wall."""
    whole = zygote_client.source_of

    def weaker(name):
        source = whole(name)
        if name.endswith(f".{module}"):
            assert old in source, "the wall is not where this test looks for it"
            source = source.replace(old, new)
        return source

    monkeypatch.setattr(zygote_client, "source_of", weaker)


@pytest.mark.bubblewrap
@pytest.mark.parametrize("wall", WALLS_TAKEN_DOWN)
def test_without_a_wall_its_promise_is_broken(wall, monkeypatch):
    module, old, new, names = WALLS_TAKEN_DOWN[wall]
    take_down(monkeypatch, module, old, new)
    assert statuses(SandboxSpec("bubblewrap"), names) == dict.fromkeys(names, "broken")


@pytest.mark.bubblewrap
def test_without_the_network_namespace_the_network_is_there(monkeypatch):
    shared = tuple(name for name in bubblewrap.UNSHARED if name != "net")
    monkeypatch.setattr(bubblewrap, "UNSHARED", shared)
    names = ["loopback_of_the_host", "abstract_sockets"]
    assert statuses(SandboxSpec("bubblewrap"), names) == dict.fromkeys(names, "broken")


@pytest.mark.docker
@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ("        os.setresuid(uid, uid, uid)\n        zygote", "        zygote", ["not_root"]),
        ("        zygote_seccomp.install()", "        pass", ["no_kernel_playground"]),
        ("            self._remove_sysv()\n", "            pass\n", ["system_v_objects"]),
        ("                os.kill(-1, signal.SIGKILL)\n", "                pass\n", ["daemons"]),
    ],
)
def test_without_a_wall_in_the_container_its_promise_is_broken(old, new, names, monkeypatch):
    take_down(monkeypatch, "zygote_walls", old, new)
    for row in conformance.run(SandboxSpec("container"), only=names):
        assert row.status in ("broken", "failed to run"), row.name


def test_a_check_that_is_not_known_is_named():
    with pytest.raises(ValueError, match="there is no check 'nonsense'; the checks are exit_codes"):
        conformance.run(SandboxSpec("bubblewrap"), only=["nonsense"])


def test_a_sandbox_that_does_not_come_up_is_no_broken_promise():
    with pytest.raises(SandboxUnavailable):
        conformance.run(SandboxSpec("local_process"), only=["exit_codes"])


def test_the_page_names_every_promise():
    page = (Path(__file__).parents[2] / "docs" / "sandboxes.md").read_text()
    assert [name for name in PROMISES if f"`{name}`" not in page] == []
