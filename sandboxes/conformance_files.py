"""Conformance checks: files go in and come out, and nothing that a program leaves leads anywhere else."""

import io
import tarfile

from verigrad.sandboxes.base import Limits, ProgramFault
from verigrad.sandboxes.conformance_bench import Bench, NotApplicable, check, describe, expect, refused, took

OUTSIDE = ("../x", "a/../../x", "/etc/x", "/", "..")


@check
def files_go_in_and_out(bench: Bench) -> None:
    """What was written is read, byte by byte; folders are made; what is there is replaced."""
    data = bytes(range(256)) * 1000
    bench.box.write_file("a/b/c.bin", b"old")
    bench.box.write_file("a/b/c.bin", data)
    expect(bench.box.read_file("a/b/c.bin") == data, "something else came back")
    bench.box.write_file("run.sh", b"#!/bin/sh\necho ran", executable=True)
    done = bench.box.exec(["./run.sh"])
    expect(done.stdout == b"ran\n", f"an executable file: {describe(done)}")


@check
def no_path_leads_outside(bench: Bench) -> None:
    """Paths outside HOME are refused."""
    for path in OUTSIDE:
        expect(refused(bench.box.write_file, path, b"x") == "ValueError", f"writing {path} was not refused")
        expect(refused(bench.box.read_file, path) == "ValueError", f"reading {path} was not refused")
        expect(refused(bench.box.save, [path]) == "ValueError" or path == "/", f"saving {path}")


@check
def missing_file(bench: Bench) -> None:
    """A file that the program did not write is the program's failure."""
    for path in ("nothing", "no/such/folder"):
        expect(refused(bench.box.read_file, path) == "ProgramFault", f"{path} was not refused")


@check
def links_are_not_read(bench: Bench) -> None:
    """Reading follows no link, at the end of a path or within."""
    done = bench.run("import os; os.symlink('/etc/passwd', 'link'); os.symlink('/etc', 'folder')")
    expect(done.ok, describe(done))
    for path in ("link", "folder/passwd"):
        expect(refused(bench.box.read_file, path) == "ProgramFault", f"{path} was read")


@check
def links_are_not_written(bench: Bench) -> None:
    """Writing follows no link, at the end of a path or within."""
    source = """
import os
os.mkdir("real"); open("real/target", "w").write("untouched")
os.symlink("real/target", "link"); os.symlink("real", "folder")
"""
    expect(bench.run(source).ok, "the links could not be made")
    bench.box.write_file("link", b"new")
    expect(
        refused(bench.box.write_file, "folder/target", b"new") == "ProgramFault", "folder/target was written"
    )
    expect(bench.box.read_file("real/target") == b"untouched", "a link was followed")
    expect(bench.box.read_file("link") == b"new", "the link was not replaced")


@check
def links_that_change(bench: Bench) -> None:
    """A folder that turns into a link while it is read leads nowhere."""
    source = """
import os
os.mkdir("real"); open("real/passwd", "w").write("inside")
os.symlink("/etc", "other")
print("ready", flush=True)
while True:
    os.rename("real", "d"); os.rename("d", "real")
    os.rename("other", "d"); os.rename("d", "other")
"""
    bench.box.write_file("swap.py", source.encode())
    process = bench.box.start(["python3", "swap.py"], limits=Limits(wall_s=20))
    process.receive(timeout_s=10)
    try:
        for _ in range(150):
            try:
                data = bench.box.read_file("d/passwd")
            except ProgramFault:
                continue
            expect(data == b"inside", f"a file outside HOME was read: {data[:40]!r}")
    except ValueError as error:
        raise NotApplicable(f"files cannot be read while a program runs: {error}") from error
    finally:
        process.kill()


@check
def no_waiting_on_pipes(bench: Bench) -> None:
    """Only regular files are read: a pipe, a device or a folder is refused at once."""
    source = """
import os, socket
os.mkfifo("pipe"); os.mkdir("folder"); os.symlink("/dev/zero", "zero")
socket.socket(socket.AF_UNIX).bind("socket")
"""
    done = bench.run(source)
    expect(done.ok, describe(done))
    for path in ("pipe", "folder", "socket", "zero"):
        result, seconds = took(refused, bench.box.read_file, path)
        expect(result == "ProgramFault", f"{path} was read")
        expect(seconds < 5, f"{path}: {seconds:.1f} s")
    expect(refused(bench.box.write_file, "folder", b"x") in ("ProgramFault", None), "writing over a folder")
    bench.still_works()


@check
def size_of_what_is_read(bench: Bench) -> None:
    """A file larger than was asked for is refused."""
    expect(bench.run("open('big', 'w').write('x' * 2000)").ok, "no file")
    expect(len(bench.box.read_file("big", max_bytes=2000)) == 2000, "at the limit")
    expect(refused(bench.box.read_file, "big", max_bytes=1999) == "ProgramFault", "one byte over the limit")


@check
def archive_holds_plain_files(bench: Bench) -> None:
    """What is saved holds regular files and folders below HOME, and nothing else."""
    source = """
import os, socket
os.makedirs("a/b"); open("a/b/file", "w").write("content"); open("tool", "w").close(); os.chmod("tool", 0o755)
os.symlink("/etc/passwd", "link"); os.symlink("/etc", "a/etc"); os.mkfifo("pipe")
socket.socket(socket.AF_UNIX).bind("socket")
"""
    expect(bench.run(source).ok, "the files could not be made")
    with tarfile.open(fileobj=io.BytesIO(bench.box.save())) as tar:
        found = {info.name.removeprefix("./").rstrip("/"): info for info in tar}
    expect(
        {"a", "a/b", "a/b/file", "tool", "attack.py"} >= set(found) - {".", ""}, f"it holds {sorted(found)}"
    )
    expect("a/b/file" in found, f"it lacks a/b/file: {sorted(found)}")
    expect(all(info.isreg() or info.isdir() for info in found.values()), "it holds something else")
    with tarfile.open(fileobj=io.BytesIO(bench.box.save(["a/b", "not-there"]))) as tar:
        names = {info.name.removeprefix("./") for info in tar if info.isreg()}
    expect(names == {"a/b/file"}, f"a/b holds {sorted(names)}")


@check
def archive_has_a_limit(bench: Bench) -> None:
    """Saving more than was asked for is refused."""
    expect(bench.run("for n in range(3): open(f'{n}', 'w').write('x' * 100_000)").ok, "no files")
    expect(refused(bench.box.save, max_bytes=250_000) == "ProgramFault", "300 kB went into 250 kB")


@check
def archive_travels(bench: Bench) -> None:
    """What one sandbox saved, another loads, and programs there own it."""
    bench.box.write_file("data/one", b"1")
    bench.box.write_file("run.sh", b"#!/bin/sh\ncat data/one", executable=True)
    archive = bench.box.save()
    other = bench.another()
    other.load(archive)
    done = other.exec(["sh", "-c", "./run.sh && echo 2 >> data/one && rm run.sh"])
    expect(done.ok and done.stdout == b"1", describe(done))
    expect(other.read_file("data/one") == b"12\n", "the program could not change what was loaded")


@check
def no_archive_leads_outside(bench: Bench) -> None:
    """An archive with names, links or devices that lead outside puts nothing there."""
    for kind in ("parent", "absolute", "link", "hard link", "device"):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            if kind in ("link", "hard link"):
                info = tarfile.TarInfo("away")
                info.type = tarfile.SYMTYPE if kind == "link" else tarfile.LNKTYPE
                info.linkname = "/tmp" if kind == "link" else "/etc/passwd"
                tar.addfile(info)
            if kind == "device":
                info = tarfile.TarInfo("device")
                info.type, info.devmajor, info.devminor = tarfile.CHRTYPE, 1, 5
                tar.addfile(info)
            name = {"parent": "../tmp/planted", "absolute": "/tmp/planted"}.get(kind, "away/planted")
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"evil"))
        refused(bench.box.load, out.getvalue())
        look = "cat /tmp/planted; test -c device && echo device; test -L away && echo link"
        done = bench.box.exec(["sh", "-c", look])
        expect(not done.stdout, f"{kind}: {done.stdout[:80]!r}")
        bench.box.reset()


@check
def anything_can_be_wiped(bench: Bench) -> None:
    """Deep, locked and oddly named folders hinder neither saving nor wiping."""
    source = r"""
import os
for name in ("-rf", "new\nline", "quote'", "\udcff", "x" * 255):
    open(name, "w").close()
os.mkdir("locked"); open("locked/in", "w").close(); os.chmod("locked", 0)
for _ in range(300):
    os.mkdir("d"); os.chdir("d")
"""
    done = bench.run(source)
    expect(done.ok, describe(done))
    refused(bench.box.save)  # either is fine; the sandbox must stay
    _, seconds = took(bench.box.reset)
    expect(seconds < 10, f"wiping took {seconds:.1f} s")
    done = bench.box.exec(["ls", "-A"])
    expect(done.ok and not done.stdout, f"left: {done.stdout[:80]!r}")
