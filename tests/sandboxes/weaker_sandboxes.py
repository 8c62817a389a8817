"""Sandboxes that break one promise each, around one that keeps them all: what checks must notice."""

import os

from verigrad.sandboxes.base import Backend, ExecResult, Limits, Sandbox, SandboxLost
from verigrad.sandboxes.bubblewrap import Bubblewrap


class Around(Sandbox):
    """Keeps every promise that the one inside keeps."""

    def __init__(self, inside):
        self.inside = inside

    def exec(self, command, *, stdin=b"", limits=None, env=None):
        return self.inside.exec(command, stdin=stdin, limits=limits, env=env)

    def start(self, command, *, limits=None, env=None):
        return self.inside.start(command, limits=limits, env=env)

    def write_file(self, path, data, *, executable=False):
        self.inside.write_file(path, data, executable=executable)

    def read_file(self, path, *, max_bytes=1 << 20):
        return self.inside.read_file(path, max_bytes=max_bytes)

    def save(self, paths=(".",), *, max_bytes=16 << 20):
        return self.inside.save(paths, max_bytes=max_bytes)

    def load(self, archive):
        self.inside.load(archive)

    def reset(self):
        self.inside.reset()

    def close(self):
        self.inside.close()


class NeverWipes(Around):
    def reset(self):
        pass


class LeaksTheEnvironment(Around):
    def exec(self, command, *, stdin=b"", limits=None, env=None):
        ours = {name: value for name, value in os.environ.items() if name.startswith("VERIGRAD_")}
        return self.inside.exec(command, stdin=stdin, limits=limits, env={**ours, **(env or {})})


class FollowsLinks(Around):
    def read_file(self, path, *, max_bytes=1 << 20):
        return self.inside.exec(["cat", path]).stdout[:max_bytes]


class ForgetsLimits(Around):
    def exec(self, command, *, stdin=b"", limits=None, env=None):
        loose = Limits(wall_s=8.0, cpu_s=60.0, memory_mb=900, output_bytes=8 << 20, file_mb=60, pids=100)
        return self.inside.exec(command, stdin=stdin, limits=loose, env=env)


class SaysAllIsWell(Around):
    def exec(self, command, *, stdin=b"", limits=None, env=None):
        done = self.inside.exec(command, stdin=stdin, limits=limits, env=env)
        return ExecResult("exited", 0, done.stdout, done.stderr, done.seconds)


class ReadsText(Around):
    def exec(self, command, *, stdin=b"", limits=None, env=None):
        done = self.inside.exec(command, stdin=stdin, limits=limits, env=env)
        text = done.stdout.decode(errors="replace").encode()
        return ExecResult(done.status, done.exit_code, text, done.stderr, done.seconds, done.signal)


class IsAlwaysLost(Around):
    def exec(self, command, *, stdin=b"", limits=None, env=None):
        raise SandboxLost("the engine is gone")


class Weaker(Backend):
    name = "weaker"
    promises = "all but one"

    def unavailable(self, options):
        return None

    def open(self, *, kind, **options):
        return globals()[kind](Bubblewrap().open(**options))
