"""What code of the user's own raised -> the file and line to look at, without verigrad's own frames."""

import asyncio
import site
import sysconfig
import traceback
from pathlib import Path
from types import TracebackType

OURS = tuple(f"{Path(__file__).resolve().parents[1] / room}/" for room in ("verifiers", "engine"))
MACHINERY = ("<frozen", str(Path(asyncio.__file__).parent))
LIBRARIES = (sysconfig.get_path("stdlib"), *site.getsitepackages(), site.getusersitepackages())


def user_traceback(error: BaseException) -> str:
    """The traceback from the first frame that is not verigrad's; all of it where every frame is."""
    trace = error.__traceback__
    while trace is not None and _file(trace).startswith((*OURS, *MACHINERY)):
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace or error.__traceback__, limit=-20))


def place(error: BaseException) -> str:
    """`file.py line 3`: the innermost line that is the user's own; "" where the error names none."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name} line {error.lineno}"
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    foreign = [frame for frame in frames if not frame[0].startswith((*OURS, *MACHINERY))]
    own = [frame for frame in foreign if not frame[0].startswith(LIBRARIES)] or foreign
    return f"{Path(own[-1][0]).name} line {own[-1][1]}" if own else ""


def one_line(error: BaseException) -> str:
    """What it says, as printable text in one line of at most 200 characters."""
    return "".join(sign if sign.isprintable() else " " for sign in str(error)[:200])


def import_failure(error: BaseException, what: str) -> str:
    """One line on code that cannot be imported; `what` is named where no file can be told."""
    where = place(error) or what
    if isinstance(error, ModuleNotFoundError) and error.name:
        name = error.name.partition(".")[0]
        folder = _folder_with(name, error)
        remedy = f"set PYTHONPATH={folder} to find it" if folder else "install it in this environment"
        return f"{where}: {error}; {remedy}"
    says = error.msg if isinstance(error, SyntaxError) else next(iter(str(error).strip().splitlines()), "")
    return f"{where}: {type(error).__name__}{f': {says}' if says else ''}"


def _folder_with(module: str, error: BaseException) -> Path | None:
    """The folder of the file that imports `module`, where the module lies next to it."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        folder = Path(frame.filename).parent
        if (folder / f"{module}.py").is_file() or (folder / module / "__init__.py").is_file():
            return folder
    return None


def _file(trace: TracebackType) -> str:
    return trace.tb_frame.f_code.co_filename
