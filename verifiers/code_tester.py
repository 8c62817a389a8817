"""Beside a row's tests, in a sandbox without the program: runs them, and says of each whether it passed.

`import solution` gives a stand-in here, which forwards every call through the judge to the program's own
process and brings back plain data. Run as `python3 harness.py`; the judge puts code_view.py's text in front
of this one. Every message to the judge bears a token that only this process and the judge know.
"""

import ast
import builtins
import importlib
import json
import os
import sys
import types
from collections.abc import Iterator
from typing import Any

from verigrad.verifiers.code_view import NotPlain, decode, encode, line

NEVER_RAISED = ("StopIteration", "StopAsyncIteration")  # they would end a loop of the tests, unseen
# Tests that use these without importing them get the real ones: the program's `math.isclose` might say yes to
# everything.
MODULES = {
    *("math", "cmath", "operator", "re", "itertools", "collections", "functools", "json", "decimal"),
    *("fractions", "datetime", "sys", "os", "pytest", "unittest"),
}
PLAIN_METHODS = {name for kind in (str, bytes, list, dict, set, tuple, int, float) for name in dir(kind)}
# Methods of plain data that are handed an expected value, and are believed.
BELIEVED = {
    *("startswith", "endswith", "removeprefix", "removesuffix", "replace", "strip", "lstrip", "rstrip"),
    *("partition", "rpartition", "split", "rsplit", "issubset", "issuperset", "isdisjoint", "difference"),
    *("symmetric_difference", "intersection", "union"),
    *(name for name in dir(str) if name.startswith("is")),
}


def main() -> None:
    """Read the order, run the tests, report."""
    say, leave = os.fdopen(os.dup(1), "wb"), os._exit
    hear = os.fdopen(os.dup(0), "rb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)
    order = json.loads(hear.readline())
    program = Program(say, hear, order["token"])
    for name in order["imports"]:
        try:
            importlib.import_module(name)
        except ImportError:
            program.tell({"lacks": name})
            leave(0)
    program.tell({"ready": True})
    given = json.loads(hear.readline())["names"]
    sys.modules["solution"] = Solution(program, given)
    in_scope = [name for name in given if name in order["mentioned"] and name not in MODULES]
    modules = [name for name in given if name in order["mentioned"] and name in MODULES]
    try:
        if order["lines"]:
            run_statements(program, order["source"], in_scope, modules, order["lines"])
        else:
            run_pytest(program, order["source"], in_scope, modules)
    except CannotBeAsked as error:
        program.tell({"cannot": str(error)})
    program.tell({"done": True})
    leave(0)


def run_statements(
    program: "Program", source: str, in_scope: list[str], modules: list[str], lines: list[int]
) -> None:
    """Plain source, statement by statement; those in `lines` are tests, the others prepare for them."""
    solution = sys.modules["solution"]
    names: dict[str, Any] = {"__name__": "tests", **{name: getattr(solution, name) for name in in_scope}}
    names.update({name: importlib.import_module(name) for name in modules})
    for statement in ast.parse(source).body:
        test = statement.lineno in lines
        code = compile(ast.Module([statement], []), "tests.py", "exec")
        try:
            exec(code, names)
            passed = True
        except CannotBeAsked:
            raise
        except BaseException:
            passed = False
            if not test:
                return
        if test:
            program.tell({"report": f"line {statement.lineno}", "passed": passed})


def run_pytest(program: "Program", source: str, in_scope: list[str], modules: list[str]) -> None:
    """Test functions and classes, run by pytest."""
    import pytest

    scope = f"from solution import {', '.join(in_scope)}; " if in_scope else ""
    scope += f"import {', '.join(modules)}; " if modules else ""
    with open("test_tests.py", "w", encoding="utf-8") as file:
        file.write(f"{scope}pass\n{source}")
    off = ["cacheprovider", "terminal", "faulthandler", "doctest", "junitxml", "pastebin"]
    options = [word for name in off for word in ("-p", f"no:{name}")]
    reporter = Reporter(program)
    pytest.main(["--assert=plain", "--rootdir=.", *options, "test_tests.py"], plugins=[reporter])
    if reporter.cannot:
        raise CannotBeAsked(reporter.cannot)


class Reporter:
    """A pytest plug-in that says what was collected, and of each test whether all of it passed."""

    def __init__(self, program: "Program") -> None:
        self.program = program
        self.passed: dict[str, bool] = {}
        self.cannot = ""

    def pytest_collection_finish(self, session: Any) -> None:
        """All tests there are."""
        self.program.tell({"collected": [item.nodeid for item in session.items]})

    def pytest_runtest_makereport(self, item: Any, call: Any) -> None:
        """A test that hands over what cannot travel is nobody's fault here."""
        if call.excinfo is not None and call.excinfo.errisinstance(CannotBeAsked):
            self.cannot = str(call.excinfo.value)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Set-up, call and tear-down in turn: skipped and expected to fail are not passed."""
        plain = report.outcome == "passed" and not hasattr(report, "wasxfail")
        self.passed[report.nodeid] = plain and self.passed.get(report.nodeid, report.when == "setup")
        if report.when == "teardown":
            self.program.tell({"report": report.nodeid, "passed": self.passed[report.nodeid]})


class CannotBeAsked(BaseException):
    """The tests pass on something that cannot travel, such as a function of their own."""


class CannotTravel(Exception):
    """A value that is neither plain data nor the program's."""


class SolutionExit(BaseException):
    """The program left, or tried to."""


class Program:
    """The program behind the judge: requests go out, what they returned comes back."""

    def __init__(self, say: Any, hear: Any, token: str) -> None:
        self.say, self.hear, self.token = say, hear, token
        self.held: dict[int, Any] = {}
        self.errors: dict[str, type[Exception]] = {}
        # By number: what the tests took from the module by the name of a class, and what calling that gave.
        self.classes: set[int] = set()
        self.instances: set[int] = set()
        self.methods: dict[int, str] = {}  # what the tests took from an object, and by which name

    def tell(self, message: dict[str, Any]) -> None:
        """One line to the judge."""
        self.say.write(line({**message, "token": self.token}))
        self.say.flush()

    def ask(self, of: int, do: str, *args: Any, **kwargs: Any) -> Any:
        """Have the program do something; returns and raises what it did."""
        try:
            views = {"args": encode(list(args), self.number), "kwargs": encode(kwargs, self.number)}
        except NotPlain as error:  # too deep or too large
            raise SolutionExit(str(error)) from None
        except CannotTravel as error:
            # Only where no program can be asked is nobody to blame. Where plain data could be asked (`[1:]`,
            # `.sort(key=...)`), the program chose to be an object, and must not gain by it.
            if do == "call" and self.methods.get(of) not in PLAIN_METHODS:
                raise CannotBeAsked(str(error)) from None
            raise TypeError(f"an object of the program: {error}") from None
        self.tell({"ask": {"of": of, "do": do, **views}})
        reply = json.loads(self.hear.readline())
        for place, view in reply.get("changed", ()):
            update(args[place], decode(view, self.object))
        if "raised" in reply:
            raise self.error(reply["raised"])
        return decode(reply["value"], self.object)

    def number(self, value: Any) -> dict[str, Any]:
        """The view of an object that the program holds."""
        if type(value) is Held:
            return {"object": {"held": object.__getattribute__(value, "_held")}}
        raise CannotTravel(f"the tests pass on a {type(value).__name__}, which cannot leave their process")

    def object(self, view: dict[str, Any]) -> Any:
        """The stand-in for an object that the program holds; the same one for the same object."""
        about = view["object"]
        number = about["held"]
        if number not in self.held:
            classes = about.get("error")
            self.held[number] = self.error_class(classes) if classes else Held(self, number)
        return self.held[number]

    def error_class(self, classes: list[str]) -> type[Exception]:
        """A stand-in for an exception class of the program: of that name, below the same built-in one."""
        name = classes[0]
        if name not in self.errors and not hasattr(builtins, name):
            self.errors[name] = type(name, (known_error(classes),), {})
        return self.errors.get(name) or known_error(classes)

    def error(self, raised: dict[str, Any]) -> BaseException:
        """What the program raised, as it can be raised here."""
        if not raised["handled"]:
            return SolutionExit(f"the program left by {raised['classes'][0]}")
        mine = next((self.errors[name] for name in raised["classes"] if name in self.errors), None)
        kind = mine or known_error(raised["classes"])
        try:
            return kind(raised["says"])
        except TypeError:  # one that wants more to be made, such as UnicodeDecodeError
            return RuntimeError(raised["says"])


def known_error(classes: list[str]) -> type[Exception]:
    """The nearest built-in exception; never one that ends a loop of the tests."""
    for name in classes:
        kind = getattr(builtins, name, None)
        if name in NEVER_RAISED:
            return RuntimeError
        if isinstance(kind, type) and issubclass(kind, Exception):
            return kind
    return Exception


def update(mine: Any, new: Any) -> None:
    """Do to a list, dict or set of the tests what the program did to its copy."""
    if type(mine) is not type(new):
        return
    if type(mine) is list:
        mine[:] = new
    else:
        mine.clear()
        mine.update(new)


class Solution(types.ModuleType):
    """The module `solution` of the tests."""

    def __init__(self, program: Program, names: list[str]) -> None:
        super().__init__("solution")
        self.__dict__["_program"] = program
        self.__dict__["__all__"] = [name for name in names if not name.startswith("_")]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        program = self.__dict__["_program"]
        found = program.ask(0, "get", name)
        if type(found) is Held:
            number = object.__getattribute__(found, "_held")
            program.methods.pop(number, None)
            if name[:1].isupper():
                program.classes.add(number)
        return found


class Held:
    """An object of the program, seen from the tests. It equals itself alone: equality is not asked of it."""

    def __init__(self, program: Program, number: int) -> None:
        object.__setattr__(self, "_program", program)
        object.__setattr__(self, "_held", number)

    def _ask(self, do: str, *args: Any, **kwargs: Any) -> Any:
        return object.__getattribute__(self, "_program").ask(
            object.__getattribute__(self, "_held"), do, *args, **kwargs
        )

    def _is_instance(self) -> bool:
        """Whether the tests made it by calling a class of the program."""
        program = object.__getattribute__(self, "_program")
        return object.__getattribute__(self, "_held") in program.instances

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        made = self._ask("call", *args, **kwargs)
        program = object.__getattribute__(self, "_program")
        if type(made) is Held and object.__getattribute__(self, "_held") in program.classes:
            program.instances.add(object.__getattribute__(made, "_held"))
        return made

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or (name in BELIEVED and not self._is_instance()):
            raise AttributeError(name)
        found = self._ask("get", name)
        if type(found) is Held:
            methods = object.__getattribute__(self, "_program").methods
            methods[object.__getattribute__(found, "_held")] = name
        return found

    def _operate(self, name: str, other: Any) -> Any:
        """What an operator gives. Handed plain data, which may be what the tests expect, an object that a
        function returned may answer with another object, never with plain data: `f(x) - 3` is no 0."""
        found = self._ask("operate", name, other)
        if type(other) is not Held and type(found) is not Held and not self._is_instance():
            raise TypeError(f"{name} of an object of the program and of plain data gave plain data")
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("set", name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._ask("item", key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._ask("set_item", key, value)

    def __len__(self) -> int:
        return int(self._ask("len"))

    def __bool__(self) -> bool:
        return bool(self._ask("truth"))

    def __iter__(self) -> Iterator[Any]:
        return iter(self._ask("items"))

    def __next__(self) -> Any:
        for item in self._ask("next"):
            return item
        raise StopIteration

    def __instancecheck__(self, value: Any) -> bool:
        return type(value) is Held and bool(self._ask("instance", value))

    def __str__(self) -> str:
        return str(self._ask("text", "str"))

    def __repr__(self) -> str:
        return str(self._ask("text", "repr"))

    def __add__(self, other: Any) -> Any:
        return self._operate("add", other)

    def __sub__(self, other: Any) -> Any:
        return self._operate("sub", other)

    def __mul__(self, other: Any) -> Any:
        return self._operate("mul", other)

    def __truediv__(self, other: Any) -> Any:
        return self._operate("truediv", other)

    def __neg__(self) -> Any:
        return self._ask("operate", "neg")


if __name__ == "__main__":
    main()
