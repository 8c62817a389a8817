"""Beside a program nobody trusts, in its process: requests in, a line of JSON each with what it returned.

Run as `python3 harness.py` beside solution.py; the judge puts code_view.py's text in front of this one.
Nothing here is a defence: the program can change all of it, and only what it says is compared, elsewhere.
"""

import json
import os
import re
import sys
import types
from collections.abc import Callable
from typing import Any

from verigrad.verifiers.code_view import NotPlain, decode, encode, line

MAX_ITEMS = 100_000  # of something iterable
STEP = re.compile(r"(\w+)(\(\))?")
OPERATORS = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "neg", "abs")  # none that compares


def main() -> None:
    """Load the program, then answer line after line until standard input ends."""
    say, leave = os.fdopen(os.dup(1), "wb"), os._exit
    requests = os.fdopen(os.dup(0), "rb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    served = Served()
    loads, make_line = json.loads, line
    try:
        served.load("solution.py")
    except BaseException as error:
        say.write(make_line({"failed": raised(error)}))
        say.flush()
        leave(1)
    say.write(make_line({"names": [name for name in vars(served.module) if name.isidentifier()]}))
    say.flush()
    for request in requests:
        try:
            reply = served.answer(loads(request))
        except BaseException as error:
            reply = {"raised": raised(error)}
        say.write(make_line(reply))
        say.flush()
    leave(0)


def raised(error: BaseException) -> dict[str, Any]:
    """An exception as data: its classes, nearest first, and what it says."""
    classes = [kind.__name__ for kind in type(error).__mro__[:20]]
    try:
        says = str(error)[:500]
    except BaseException:
        says = ""
    return {"classes": classes, "says": says, "handled": isinstance(error, Exception)}


class Served:
    """The program's module, and the objects of it that others hold by number."""

    def __init__(self) -> None:
        self.module = types.ModuleType("solution")
        self.held: list[Any] = [self.module]
        self.places: dict[int, int] = {}  # id -> place in `held`, which keeps the object alive

    def load(self, path: str) -> None:
        """Run the program as the module `solution`."""
        sys.modules["solution"] = self.module
        with open(path, encoding="utf-8") as file:
            source = file.read()
        self.module.__file__ = path
        exec(compile(source, path, "exec"), self.module.__dict__)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Carry out one request."""
        if "path" in request:
            target = self.found(request["path"])
            args, kwargs = decode(request["args"]), decode(request["kwargs"])
            return {"value": encode(target(*args, **kwargs))}
        target = self.held[request["of"]]
        args, kwargs = (decode(request[name], self.taken) for name in ("args", "kwargs"))
        mutable = [place for place, value in enumerate(args) if type(value) in (list, dict, set)]
        before = [encode(args[place], self.kept) for place in mutable]
        reply = {"value": encode(getattr(self, "do_" + request["do"])(target, *args, **kwargs), self.kept)}
        after = [encode(args[place], self.kept) for place in mutable]
        changed = [[place, new] for place, old, new in zip(mutable, before, after, strict=True) if old != new]
        return {**reply, "changed": changed} if changed else reply

    def found(self, path: str) -> Callable[..., Any]:
        """`name`, `Class().method` and so on in the program."""
        target: Any = self.module
        for step in path.split("."):
            name, called = STEP.fullmatch(step).groups()  # type: ignore[union-attr]
            target = getattr(target, name)
            target = target() if called else target
        return target  # type: ignore[no-any-return]

    def kept(self, value: Any) -> dict[str, Any]:
        """An object that is no plain data, by number."""
        if id(value) not in self.places:
            self.places[id(value)] = len(self.held)
            self.held.append(value)
        about: dict[str, Any] = {"held": self.places[id(value)]}
        if isinstance(value, type) and issubclass(value, BaseException):
            about["error"] = [kind.__name__ for kind in value.__mro__[:20]]
        return {"object": about}

    def taken(self, view: dict[str, Any]) -> Any:
        """The object of a number."""
        return self.held[view["object"]["held"]]

    def do_call(self, target: Any, *args: Any, **kwargs: Any) -> Any:
        """target(...)."""
        return target(*args, **kwargs)

    def do_get(self, target: Any, name: str) -> Any:
        """target.name."""
        return getattr(target, name)

    def do_set(self, target: Any, name: str, value: Any) -> None:
        """target.name = value."""
        setattr(target, name, value)

    def do_item(self, target: Any, key: Any) -> Any:
        """target[key]."""
        return target[key]

    def do_set_item(self, target: Any, key: Any, value: Any) -> None:
        """target[key] = value."""
        target[key] = value

    def do_len(self, target: Any) -> int:
        """len(target)."""
        return len(target)

    def do_text(self, target: Any, how: str) -> str:
        """str(target) or repr(target), as a plain string."""
        said = str(target) if how == "str" else repr(target)
        return "".join(said)

    def do_items(self, target: Any) -> list[Any]:
        """All of list(target)."""
        items = []
        for item in target:
            items.append(item)
            if len(items) > MAX_ITEMS:
                raise NotPlain(f"more than {MAX_ITEMS} items")
        return items

    def do_next(self, target: Any) -> list[Any]:
        """[next(target)], or [] at its end."""
        try:
            return [next(target)]
        except StopIteration:
            return []

    def do_truth(self, target: Any) -> bool:
        """bool(target)."""
        return bool(target)

    def do_instance(self, target: Any, value: Any) -> bool:
        """isinstance(value, target)."""
        return isinstance(value, target)

    def do_operate(self, target: Any, name: str, *others: Any) -> Any:
        """target + other and so on; no comparison, for that would let the program judge itself."""
        import operator

        if name not in OPERATORS:
            raise TypeError(f"no operator {name}")
        return getattr(operator, name)(target, *others)


if __name__ == "__main__":
    main()
