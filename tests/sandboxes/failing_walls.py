"""Walls that no process can be put behind, as on a machine that has run out of something. Runs in the box."""

import os

from verigrad.sandboxes.zygote_walls import PlainWall


class FailsToPrepare(PlainWall):
    """No namespaces are left: each process but the first one fails before its job is known."""

    def prepare(self):
        if os.path.exists(f"{self.home}/ready"):
            raise OSError(28, "no namespaces are left")
        with open(f"{self.home}/ready", "w"):
            pass
        super().prepare()


class FailsToEnter(PlainWall):
    """The kernel refuses the last step before the program."""

    def enter(self, ticket):
        raise OSError(1, "not permitted")
