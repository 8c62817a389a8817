"""A SandboxSpec -> one result per promise of a sandbox: held, broken, not applicable, or failed to run.

Each check attacks one promise, on any backend, ours or a third party's: `verigrad audit --sandbox NAME`, or

    from verigrad.sandboxes import conformance
    from verigrad.sandboxes.base import SandboxSpec
    for result in conformance.run(SandboxSpec("bubblewrap")):
        print(result.status, result.name, result.promise, result.detail)

The checks lie in the files conformance_*.py. They use real limits and take about a minute.
"""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

from verigrad.sandboxes import (
    conformance_files,
    conformance_host,
    conformance_limits,
    conformance_neighbours,
    conformance_privileges,
    conformance_python,
    conformance_results,
)
from verigrad.sandboxes.base import SandboxError, SandboxSpec
from verigrad.sandboxes.conformance_bench import CHECKS, Bench, Broken, NotApplicable

Status = Literal["held", "broken", "not applicable", "failed to run"]
PARTS = (
    conformance_results,
    conformance_limits,
    conformance_files,
    conformance_host,
    conformance_privileges,
    conformance_neighbours,
    conformance_python,
)


@dataclass(frozen=True, slots=True)
class CheckResult:
    """How one promise fared."""

    name: str
    promise: str  # one line
    status: Status  # failed to run: the sandbox was lost, or the attack did not come to its end
    detail: str  # what went through, or why it did not run; empty when held
    seconds: float


def promises() -> dict[str, str]:
    """Each check's name and promise, in order."""
    order = {part.__name__: number for number, part in enumerate(PARTS)}
    checks = sorted(CHECKS.items(), key=lambda item: order[item[1].__module__])
    return {name: (check.__doc__ or "").split("\n")[0] for name, check in checks}


def run(
    spec: SandboxSpec,
    only: Collection[str] | None = None,
    *,
    show: Callable[[CheckResult], None] | None = None,
) -> list[CheckResult]:
    """Put a kind of sandbox through all checks, or through those named; `show` gets each result as it comes.

    Raises SandboxError when no sandbox comes up at all, ValueError for a name that no check has.
    """
    names = list(promises() if only is None else only)
    if unknown := [name for name in names if name not in CHECKS]:
        raise ValueError(f"there is no check {unknown[0]!r}; the checks are {', '.join(promises())}")
    results = []
    bench = Bench(spec)
    try:
        _ = bench.box  # a sandbox that does not come up is no broken promise
        for name in names:
            results.append(_try(bench, name))
            if show:
                show(results[-1])
    finally:
        bench.close()
    return results


def _try(bench: Bench, name: str) -> CheckResult:
    started = time.monotonic()
    status: Status = "held"
    detail = ""
    try:
        CHECKS[name](bench)
    except Broken as broken:
        status, detail = "broken", str(broken)
    except NotApplicable as reason:
        status, detail = "not applicable", str(reason)
    except SandboxError as error:
        status, detail = "failed to run", f"the sandbox was lost: {error}"
        bench.throw_away()
    except Exception as error:  # another's sandbox may raise anything, and the list must stand
        status, detail = "failed to run", f"{type(error).__name__}: {error}"
    bench.clean_up()
    return CheckResult(name, promises()[name], status, detail, round(time.monotonic() - started, 3))
