"""Paths below HOME to files written, read, packed and wiped, without ever following what a program put there.

Runs inside the box, as a user who may do more than the program: every component is opened by itself with
O_NOFOLLOW, and nothing but regular files is read.
"""

import errno
import io
import os
import stat
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC  # a FIFO must not block
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
MAX_DEPTH = 64  # folders inside folders that `save` goes into
MAX_ENTRIES = 20_000  # files and folders that `save` takes
MAX_STEPS = 100_000  # folders that it opens to get to them, those above each among them

Owner = tuple[int, int] | None  # user and group of what is made; None: whoever makes it


class Fault(Exception):
    """What a program left is not what was asked for."""


def write(home: str, parts: Sequence[str], data: bytes, *, mode: int, owner: Owner) -> None:
    """Put a file there, making folders; whatever had its name is replaced, unless it is a folder."""
    with folder(home, parts[:-1], make=True, owner=owner) as place:
        write_in(place, parts, data, mode=mode, owner=owner)


def write_in(place: int, parts: Sequence[str], data: bytes, *, mode: int, owner: Owner) -> None:
    """As `write`, into a folder that is open."""
    with told(parts):
        with suppress(FileNotFoundError):
            os.unlink(parts[-1], dir_fd=place)
        file = os.open(parts[-1], CREATE, 0o600, dir_fd=place)
        try:
            os.fchmod(file, mode)
            if owner:
                os.fchown(file, *owner)
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(file, rest) :]
        finally:
            os.close(file)


def read(home: str, parts: Sequence[str], *, max_bytes: int) -> bytes:
    """A regular file's content. Raises Fault for anything else."""
    with folder(home, parts[:-1]) as place:
        return read_in(place, parts, max_bytes=max_bytes)


def read_in(place: int, parts: Sequence[str], *, max_bytes: int) -> bytes:
    """As `read`, from a folder that is open."""
    with told(parts):
        file = os.open(parts[-1], READ, dir_fd=place)
        try:
            return content(file, parts, max_bytes)
        finally:
            os.close(file)


def content(file: int, parts: Sequence[str], max_bytes: int) -> bytes:
    """All of an open file, which must be regular and not larger than this, even if it grows meanwhile."""
    if not stat.S_ISREG(os.fstat(file).st_mode):
        raise Fault(f"{'/'.join(parts)} is not a regular file")
    chunks, size = [], 0
    while chunk := os.read(file, min(1 << 20, max_bytes + 1 - size)):
        chunks.append(chunk)
        size += len(chunk)
        if size > max_bytes:
            raise Fault(f"{'/'.join(parts)} is larger than {max_bytes} bytes")
    return b"".join(chunks)


def save(home: str, roots: Sequence[Sequence[str]], *, max_bytes: int) -> bytes:
    """Regular files and folders as a tar archive, in order of name; what is not there is left out."""
    archive = io.BytesIO()
    size = 0
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.GNU_FORMAT) as tar, Folders(home) as folders:
        for parts, is_folder, executable in sorted(set(entries(home, roots))):
            info = tarfile.TarInfo("/".join(parts))
            info.mode = 0o700 if is_folder or executable else 0o600
            if is_folder:
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
                continue
            try:
                data = read_in(folders.at(parts[:-1]), parts, max_bytes=max_bytes - size)
            except Fault as fault:
                raise Fault(f"{fault}, with what was packed before it") from fault
            size += len(data)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return archive.getvalue()


def entries(home: str, roots: Sequence[Sequence[str]]) -> Iterator[tuple[tuple[str, ...], bool, bool]]:
    """Each file and folder below the roots: its parts, whether it is a folder, whether it may be executed."""
    waiting: list[tuple[str, ...]] = []
    seen = steps = 0
    for root in map(tuple, roots):
        try:
            mode = status_of(home, root).st_mode if root else stat.S_IFDIR
        except Fault:
            continue  # not there, or reached through a link
        seen += 1
        if stat.S_ISDIR(mode):
            if root:
                yield root, True, True
            waiting.append(root)
        elif stat.S_ISREG(mode):
            yield root, False, bool(mode & 0o100)
    while waiting:
        above = waiting.pop()
        if len(above) >= MAX_DEPTH:
            raise Fault(f"folders more than {MAX_DEPTH} deep")
        steps += len(above)
        if steps > MAX_STEPS:
            raise Fault("too many folders, too deep inside each other")
        with folder(home, above) as place:
            for name in os.listdir(place):
                parts = (*above, name)
                with told(parts):
                    mode = os.stat(name, dir_fd=place, follow_symlinks=False).st_mode
                seen += 1
                if seen > MAX_ENTRIES:
                    raise Fault(f"more than {MAX_ENTRIES} files and folders")
                if stat.S_ISDIR(mode):
                    yield parts, True, True
                    waiting.append(parts)
                elif stat.S_ISREG(mode):
                    yield parts, False, bool(mode & 0o100)


def load(home: str, archive: bytes, *, owner: Owner) -> None:
    """Unpack what `save` made. ValueError when it is not such an archive."""
    try:
        with (
            tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar,
            Folders(home, make=True, owner=owner) as folders,
        ):
            for info in tar:
                parts = tuple(part for part in info.name.split("/") if part != ".")
                if not parts or ".." in parts or "" in parts:
                    raise ValueError(f"the archive holds {info.name!r}, which is not below HOME")
                if info.isdir():
                    folders.at(parts)
                elif info.isreg():
                    file = tar.extractfile(info)
                    assert file is not None
                    mode = 0o700 if info.mode & 0o100 else 0o600
                    write_in(folders.at(parts[:-1]), parts, file.read(), mode=mode, owner=owner)
                else:
                    raise ValueError(f"the archive holds {info.name!r}, neither file nor folder")
    except tarfile.TarError as error:
        raise ValueError(f"not an archive that save made: {error}") from error


class Folders:
    """Folders below HOME, each kept open until another one is asked for: thousands of files that lie deep
    must not cost the opening of every folder above each of them."""

    def __init__(self, home: str, *, make: bool = False, owner: Owner = None) -> None:
        self.home, self.make, self.owner = home, make, owner
        self.open = ExitStack()
        self.parts: tuple[str, ...] | None = None
        self.place = -1

    def at(self, parts: tuple[str, ...]) -> int:
        """That folder, open until the next one is."""
        if parts != self.parts:
            self.open.close()
            self.parts = None
            self.place = self.open.enter_context(folder(self.home, parts, make=self.make, owner=self.owner))
            self.parts = parts
        return self.place

    def __enter__(self) -> "Folders":
        return self

    def __exit__(self, *rest: object) -> None:
        self.open.close()


def status_of(home: str, parts: Sequence[str]) -> os.stat_result:
    """What stands there, links not followed."""
    with folder(home, parts[:-1]) as place, told(parts):
        return os.stat(parts[-1], dir_fd=place, follow_symlinks=False)


@contextmanager
def folder(home: str, parts: Sequence[str], *, make: bool = False, owner: Owner = None) -> Iterator[int]:
    """A folder below HOME, opened component by component; closed at the end."""
    place = os.open(home, FOLDER)
    try:
        for number, part in enumerate(parts):
            with told(parts[: number + 1]):
                try:
                    inner = os.open(part, FOLDER, dir_fd=place)
                except FileNotFoundError:
                    if not make:
                        raise
                    os.mkdir(part, 0o700, dir_fd=place)
                    inner = os.open(part, FOLDER, dir_fd=place)
                    if owner:
                        os.fchown(inner, *owner)
            os.close(place)
            place = inner
        yield place
    finally:
        os.close(place)


@contextmanager
def told(parts: Sequence[str]) -> Iterator[None]:
    """Turns the system's refusal into a Fault that names the path."""
    try:
        yield
    except OSError as error:
        why = {
            errno.ELOOP: "is a link, or is reached through one",
            errno.ENOTDIR: "is not a folder, or is reached through a link",
            errno.ENXIO: "is not a regular file",
            errno.EISDIR: "is a folder",
        }.get(error.errno or 0, error.strerror)
        raise Fault(f"{'/'.join(parts)}: {why}") from error


def wipe(top: str) -> None:
    """Remove all that is in a folder, however deep and however named; the folder itself stays.

    Folders are lifted to the top before they are emptied, so that depth costs neither stack nor open files.
    """
    place = os.open(top, FOLDER)
    number = 0
    try:
        while names := os.listdir(place):
            for name in names:
                number = _remove(place, name, number)
    finally:
        os.close(place)


def _remove(place: int, name: str, number: int) -> int:
    try:
        os.unlink(name, dir_fd=place)
        return number
    except (IsADirectoryError, PermissionError):
        pass
    _unlock(place, name)
    inner = os.open(name, FOLDER, dir_fd=place)
    try:
        for child in os.listdir(inner):
            try:
                os.unlink(child, dir_fd=inner)
            except (IsADirectoryError, PermissionError):
                _unlock(inner, child)
                number = _lift(inner, child, place, number)
    finally:
        os.close(inner)
    os.rmdir(name, dir_fd=place)
    return number


def _unlock(place: int, name: str) -> None:
    """A folder that its owner closed to itself is opened again; a link would have been removed before."""
    if os.stat(name, dir_fd=place, follow_symlinks=False).st_mode & 0o700 != 0o700:
        os.chmod(name, 0o700, dir_fd=place)


def _lift(inner: int, child: str, place: int, number: int) -> int:
    while True:
        number += 1
        try:
            os.rename(child, f".{number}", src_dir_fd=inner, dst_dir_fd=place)
            return number
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR):
                raise
