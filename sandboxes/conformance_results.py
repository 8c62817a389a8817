"""Conformance checks: what a command did and how it ended is reported as it was."""

import hashlib
import time

from verigrad.sandboxes.base import Limits
from verigrad.sandboxes.conformance_bench import Bench, check, describe, ends_at, expect, took


@check
def exit_codes(bench: Bench) -> None:
    """An exit code is reported as it was."""
    for code in (0, 1, 3, 42, 255):
        done = bench.run(f"import sys; sys.exit({code})")
        expect((done.status, done.exit_code) == ("exited", code), f"{code}: {describe(done)}")
        done = bench.box.exec(["sh", "-c", f"exit {code}"])
        expect((done.status, done.exit_code) == ("exited", code), f"sh, {code}: {describe(done)}")


@check
def own_signals(bench: Bench) -> None:
    """A program that dies of a signal of its own is reported with that signal."""
    for number, source in (
        (15, "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"),
        (11, "import ctypes; ctypes.string_at(0)"),
        (6, "import os; os.abort()"),
        (9, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"),
    ):
        done = bench.run(source)
        expect((done.status, done.signal) == ("signalled", number), f"signal {number}: {describe(done)}")
        expect(done.exit_code is None, f"signal {number} has exit code {done.exit_code}")


@check
def command_not_found(bench: Bench) -> None:
    """A command that is not there is the program's failure, not the sandbox's."""
    done = bench.box.exec(["no-such-command"])
    expect(done.status == "exited" and done.exit_code != 0, describe(done))
    bench.still_works()


@check
def outputs_apart(bench: Bench) -> None:
    """Standard output and standard error come back apart."""
    done = bench.run("import sys; print('out'); print('err', file=sys.stderr)")
    expect((done.stdout, done.stderr) == (b"out\n", b"err\n"), describe(done))


@check
def binary_output(bench: Bench) -> None:
    """Output comes back byte by byte, whatever the bytes."""
    done = bench.run("import sys; sys.stdout.buffer.write(bytes(range(256)) * 300)")
    expect(done.stdout == bytes(range(256)) * 300, f"{len(done.stdout)} bytes came back changed")


@check
def unicode_everywhere(bench: Bench) -> None:
    """Text of any script goes in as argument, input and variable, and comes out."""
    text = "naïve 数学 🙂 ÿ"
    source = "import os, sys; sys.stdout.write(sys.argv[1] + sys.stdin.read() + os.environ['V'])"
    done = bench.run(source, text, stdin=text.encode(), env={"V": text})
    expect(done.stdout == (text * 3).encode(), describe(done))


@check
def whole_input(bench: Bench) -> None:
    """Standard input arrives whole, however large."""
    data = bytes(range(256)) * 12_000
    done = bench.run(
        "import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())", stdin=data
    )
    expect(done.stdout.decode().strip() == hashlib.sha256(data).hexdigest(), describe(done))


@check
def input_never_read(bench: Bench) -> None:
    """Input that nobody reads does not hold up the end."""
    data = b"x" * (3 << 20)
    done, seconds = took(bench.run, "print('early')", stdin=data)
    expect(done.ok and seconds < 5, f"{seconds:.1f} s, {describe(done)}")
    done = bench.run("import os, time; os.close(0); time.sleep(0.2); print('closed')", stdin=data)
    expect(done.ok, f"closed early: {describe(done)}")


@check
def no_input_is_an_end(bench: Bench) -> None:
    """Without input, reading ends at once."""
    done = bench.run("import sys; print(repr(sys.stdin.read()))")
    expect(done.stdout == b"''\n", describe(done))


@check
def home_is_where_it_runs(bench: Bench) -> None:
    """A command starts in HOME, can write there, and finds there what was written."""
    bench.box.write_file("sub/data.txt", b"there")
    done = bench.run("open('made.txt', 'w').write(open('sub/data.txt').read())")
    expect(done.ok, describe(done))
    expect(bench.box.read_file("made.txt") == b"there", "the file it made holds something else")


@check
def files_persist(bench: Bench) -> None:
    """Between two resets, files last from command to command."""
    bench.run("open('kept', 'w').write('1')")
    done = bench.box.exec(["cat", "kept"])
    expect(done.stdout == b"1", describe(done))


@check
def only_the_given_environment(bench: Bench) -> None:
    """A command gets the variables it was given."""
    done = bench.box.exec(["sh", "-c", "echo $GIVEN"], env={"GIVEN": "value"})
    expect(done.stdout == b"value\n", describe(done))
    done = bench.box.exec(["sh", "-c", "echo $GIVEN"])
    expect(done.stdout == b"\n", f"a variable of the last command is still there: {describe(done)}")


@check
def many_and_long_arguments(bench: Bench) -> None:
    """Long arguments arrive whole; those that no kernel takes fail as the program's own failure."""
    done = bench.run("import sys; print(len(sys.argv), len(sys.argv[-1]))", *["a"] * 500, "b" * 100_000)
    expect(done.stdout == b"502 100000\n", describe(done))
    done = bench.box.exec(["echo", "c" * (3 << 20)], env={"BIG": "d" * (3 << 20)})
    expect(not done.ok, "an argument of 3 MiB went through")
    bench.still_works()


@check
def exact_output_limit(bench: Bench) -> None:
    """Output up to the limit is whole; one byte more ends the program, and says so."""
    limits = Limits(output_bytes=1000)
    done = bench.run("import sys; sys.stdout.write('x' * 600); sys.stderr.write('y' * 400)", limits=limits)
    expect(done.ok and len(done.stdout + done.stderr) == 1000, f"at the limit: {describe(done)}")
    done = bench.run("import sys; sys.stdout.write('x' * 600); sys.stderr.write('y' * 401)", limits=limits)
    ends_at(done, "output", "one byte over the limit")
    expect(len(done.stdout + done.stderr) <= 1000, f"{len(done.stdout + done.stderr)} bytes came back")


@check
def seconds_are_measured(bench: Bench) -> None:
    """The seconds reported are those on the clock."""
    done = bench.run("import time; time.sleep(0.5)")
    expect(0.45 <= done.seconds < 5, f"{done.seconds} s for half a second")


@check
def closed_outputs(bench: Bench) -> None:
    """The end of a program is its end, not that of its output."""
    done = bench.run("import os, time; os.closerange(0, 3); time.sleep(0.4); os._exit(5)")
    expect((done.status, done.exit_code) == ("exited", 5), describe(done))
    expect(done.seconds >= 0.35, f"reported after {done.seconds} s, while it ran")


@check
def orphan_does_not_delay(bench: Bench) -> None:
    """A child that holds the output open does not delay the verdict."""
    source = "import os, time\nif os.fork() == 0:\n    time.sleep(60)\nprint('parent', flush=True)"
    done, seconds = took(bench.run, source, limits=Limits(wall_s=20))
    expect(done.ok and done.stdout == b"parent\n", describe(done))
    expect(seconds < 5, f"the verdict came after {seconds:.1f} s")


@check
def conversation(bench: Bench) -> None:
    """A program can be talked to while it runs."""
    bench.box.write_file(
        "echo.py", b"for line in iter(input, 'end'): print(line.upper(), flush=True)\nprint('bye')"
    )
    process = bench.box.start(["python3", "echo.py"])
    for word in (b"one", b"two"):
        process.send(word + b"\n")
        expect(process.receive(timeout_s=10) == word.upper() + b"\n", f"no answer to {word!r}")
    process.send(b"end\n")
    heard = b""
    while piece := process.receive(timeout_s=10):
        heard += piece
    done = process.finish()
    expect(heard + done.stdout == b"bye\n" and done.ok, f"{heard!r}, {describe(done)}")


@check
def conversation_waits(bench: Bench) -> None:
    """Waiting for output ends in time, and the program goes on."""
    bench.box.write_file("slow.py", b"input(); print('late', flush=True)")
    process = bench.box.start(["python3", "slow.py"])
    started = time.monotonic()
    try:
        heard = process.receive(timeout_s=0.3)
        expect(False, f"heard {heard!r} from a program that is silent")
    except TimeoutError:
        pass
    expect(time.monotonic() - started < 5, "the wait took too long")
    process.send(b"\n")
    expect(process.receive(timeout_s=10) == b"late\n", "the program did not go on")
    expect(process.finish().ok, "it did not end well")


@check
def conversation_is_limited(bench: Bench) -> None:
    """Limits hold for a program that is talked to, and it can be ended at any time."""
    bench.box.write_file("mute.py", b"import time; time.sleep(60)")
    process = bench.box.start(["python3", "mute.py"], limits=Limits(wall_s=0.5))
    process.send(b"x" * (2 << 20))  # never read
    ends_at(process.finish(), "wall_time", "half a second")
    process = bench.box.start(["python3", "mute.py"])
    _, seconds = took(process.kill)
    expect(seconds < 5, f"ending it took {seconds:.1f} s")
    bench.still_works()
