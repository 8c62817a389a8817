"""Options -> a sandbox that is none: programs run as the user who runs us, with rlimits against runaways.

For code you would run yourself. It holds runaways (time, memory, output, file size, processes that stay
behind), and nothing else: a program can read your files, use the network, kill your processes. HOME is a
folder of its own and not `/box`, so commands name files relative to it. `memory_mb`, `disk_mb`, `pids` and
`cpus` of the whole sandbox cannot be kept here, nor can `Limits.pids`.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from verigrad.sandboxes import zygote_files
from verigrad.sandboxes.base import Backend, Sandbox, SandboxUnavailable
from verigrad.sandboxes.zygote_client import PipeChannel, ZygoteSandbox, boot_command, boot_order

WALL = "verigrad.sandboxes.zygote_walls:PlainWall"
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"
END_S = 5.0  # how long the zygote may take to clean up after itself


class LocalProcess(Backend):
    """No isolation."""

    name = "local_process"
    promises = "none: time, memory and output of each program are limited; for code you would run yourself"

    def unavailable(self, options: Mapping[str, Any]) -> str | None:
        """Refused unless the code is trusted."""
        if not options.get("trusted"):
            return (
                "it isolates nothing; set sandbox.trusted = true if you would run this code yourself, else "
                "use container or bubblewrap"
            )
        return None if sys.platform == "linux" else f"it needs Linux, and this is {sys.platform}"

    def open(self, **options: Any) -> Sandbox:
        """A folder with a zygote; the options are those of `_open`."""
        return _open(**options)


def _open(
    *, trusted: bool = False, memory_mb: int = 0, disk_mb: int = 0, pids: int = 0, cpus: float = 0.0
) -> Sandbox:
    """The sizes of the whole sandbox are not kept."""
    if reason := LocalProcess().unavailable({"trusted": trusted}):
        raise SandboxUnavailable(f"local_process: {reason}")
    place = Path(tempfile.mkdtemp(prefix="verigrad-box-"))
    try:
        return ZygoteSandbox("local_process", LocalChannel(place), boot_order(WALL, folders(place)))
    except BaseException:
        remove(place)
        raise


def folders(place: Path) -> dict[str, Any]:
    """Where a program may write, as the wall's arguments."""
    return {"home": str(place / "box"), "scratch": [str(place / "tmp")]}


class LocalChannel(PipeChannel):
    """A zygote that is a child of ours."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `close`
        path = os.pathsep.join([str(Path(sys.executable).parent), SYSTEM_PATH])
        self.process = subprocess.Popen(
            boot_command(sys.executable),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            cwd=place,
            env={"PATH": path, "LANG": "C.UTF-8", "TMPDIR": str(place / "tmp")},
            start_new_session=True,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        super().__init__(self.process.stdin.fileno(), self.process.stdout.fileno())

    def last_words(self) -> str:
        """The last line of its standard error."""
        with suppress(OSError, ValueError):
            self.errors.seek(0)
            lines = self.errors.read()[-2000:].decode(errors="replace").split("\n")
            return next((line for line in reversed(lines) if line.strip()), "")
        return ""

    def close(self) -> None:
        """End of its standard input; killed if it does not end by itself."""
        for stream in (self.process.stdin, self.process.stdout):
            with suppress(OSError):
                if stream:
                    stream.close()
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.errors.close()
        remove(self.place)


def remove(place: Path) -> None:
    """The sandbox's folder and all that is in it, if it is still there."""
    with suppress(OSError):
        zygote_files.wipe(str(place))
        place.rmdir()
