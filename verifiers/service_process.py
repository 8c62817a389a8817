"""A command -> the same command, that ends with whoever started it, its children included.

Started by verifiers/service_keeper.py as the leader of a session, with a pipe as standard input: when the
other end of it is gone, closed or killed, everything in the session is killed. The kernel's own signal at a
parent's death would not do: it comes when the thread ends that started the process.
"""

import os
import select
import signal
import subprocess
import sys

LOOK_MS = 200  # between looks at the child, and at the parent: a forked child of its may hold the pipe open


def main() -> int:
    """`service_process.py PARENT COMMAND ...`; returns the command's exit status."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    poller = select.poll()
    poller.register(0, select.POLLIN | select.POLLHUP)
    while (status := child.poll()) is None:
        if poller.poll(LOOK_MS) or os.getppid() != parent:
            os.killpg(0, signal.SIGKILL)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
