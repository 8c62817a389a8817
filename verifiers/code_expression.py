"""An expression of a test -> what it is worth, once the program's calls in it have returned.

A small interpreter over plain data: literals, comparisons, arithmetic, a fixed list of functions. `==` is
code_compare's. What it does not know is NotLiftable when the tests are read, never when they are judged.
"""

import ast
import builtins
import copy
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verigrad.verifiers.code_holds import Approx, Failed, comparison, is_instance
from verigrad.verifiers.code_view import NotPlain, encode

MAX_SIZE = 1_000_000  # items or characters of a value worked out from the test source
MAX_EXPONENT = 10_000
EXCEPTIONS = frozenset(
    name for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, Exception)
)
TYPES = {kind.__name__: kind for kind in (int, float, str, list, tuple, dict, set, bool, bytes, complex)}
# On what a program returned: small results of plain data.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: getattr(builtins, name) for name in ("len", "sorted", "set", "list", "tuple", "abs", "round")},
    **{name: getattr(builtins, name) for name in ("sum", "min", "max", "all", "any", "bool", "dict")},
    **{
        f"math.{name}": getattr(math, name) for name in ("isclose", "isnan", "isinf", "sqrt", "floor", "ceil")
    },
}
# On what the test itself says; those who wrote it are trusted.
PURE_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **FUNCTIONS,
    **{name: getattr(builtins, name) for name in ("range", "int", "float", "str", "frozenset", "bytes")},
    **{name: getattr(builtins, name) for name in ("complex", "reversed", "zip", "enumerate", "chr", "ord")},
    **{
        f"math.{name}": getattr(math, name)
        for name in ("sin", "cos", "exp", "log", "gcd", "comb", "factorial")
    },
}
CONSTANTS = {"math.pi": math.pi, "math.e": math.e, "math.inf": math.inf, "math.nan": math.nan}
BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow,
}  # fmt: skip
UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Invert: operator.invert,
}  # fmt: skip


class NotLiftable(Exception):
    """The tests do something that cannot be done outside a test process."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call to be made in the program: `path` is `name`, or `Class().method`."""

    path: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a call: a value, or why there is none."""

    value: Any = None
    failed: str = ""
    raised: tuple[str, ...] = ()  # classes of what it raised, nearest first
    missing: bool = False  # the program ended before it answered

    def get(self) -> Any:
        """The value; Failed where there is none."""
        if self.failed:
            raise Failed(self.failed)
        return self.value

    def raised_one_of(self, wanted: str) -> bool:
        """Whether it raised that built-in exception; Failed where it did not even run."""
        if not self.raised and self.failed:
            raise Failed(self.failed)
        return wanted in self.raised


Thunk = Callable[[Sequence[Result]], Any]


class Expressions:
    """The names in reach of an expression, and what its parts become."""

    def __init__(self, calls: list[Call], names: dict[str, Thunk], *, entry_point: str = "") -> None:
        self.calls = calls
        self.names = names  # variables of the tests
        self.pure: dict[str, Any] = {}  # those whose value is known without running anything
        self.paths: dict[str, str] = {}  # local name -> the program's
        self.functions: dict[str, str] = {}  # local name -> math.sqrt and the like
        self.hidden: set[str] = set()  # names of the tests' own functions
        if first := entry_point.partition(".")[0].removesuffix("()"):
            self.paths[first] = first  # also where it bears the name of a built-in function

    def copy(self) -> "Expressions":
        """The same names, to which more can be added."""
        made = Expressions(self.calls, dict(self.names))
        made.pure, made.paths = dict(self.pure), dict(self.paths)
        made.functions, made.hidden = dict(self.functions), set(self.hidden)
        return made

    def hide(self, name: str) -> None:
        """A name of the tests that is no expression's business."""
        self._forget(name)
        self.hidden.add(name)

    def bind_candidate(self, name: str, path: str) -> None:
        """`from solution import path as name`."""
        self._forget(name)
        self.paths[name] = path

    def bind_function(self, name: str, known_as: str) -> None:
        """`from math import sqrt as name`."""
        self._forget(name)
        self.functions[name] = known_as

    def bind_argument(self, name: str, given: ast.expr) -> None:
        """`check(f)`: the parameter is the program's function, or a value."""
        path = self._path(given)
        if path is not None:
            self.bind_candidate(name, path)
        else:
            self._bind(name, self.value(given))

    def assign(self, target: ast.expr, value: ast.expr) -> None:
        """`name = value`, `a, b = values`."""
        if isinstance(target, ast.Name):
            if (path := self._path(value)) is not None:
                self.bind_candidate(target.id, path)
                return
            if self._is_pure(value):
                self._bind(target.id, self.value(value))
                return
            self._forget(target.id)
            self.names[target.id] = self.thunk(value)
        else:
            self.unpack(target, self.value(value))

    def unpack(self, target: ast.expr, value: Any) -> None:
        """Bind the names of a target to the parts of a value."""
        if isinstance(target, ast.Name):
            self._bind(target.id, value)
        elif isinstance(target, (ast.Tuple, ast.List)) and isinstance(value, (list, tuple)):
            if len(target.elts) != len(value):
                raise NotLiftable(f"line {target.lineno} unpacks {len(value)} values")
            for one, part in zip(target.elts, value, strict=True):
                self.unpack(one, part)
        else:
            raise NotLiftable(f"line {target.lineno} assigns to something else than names")

    def items(self, node: ast.expr) -> Iterator[Any]:
        """What a loop of the tests runs over."""
        value = self.value(node)
        if not isinstance(value, (list, tuple, range, str, dict)) or len(value) > MAX_EXPONENT:
            raise NotLiftable(f"line {node.lineno} loops over something else than a short list")
        return iter(list(value))

    def value(self, node: ast.expr) -> Any:
        """What an expression without the program's calls is worth, now."""
        if not self._is_pure(node):
            raise NotLiftable(f"line {node.lineno}: {ast.unparse(node)[:60]} needs the program")
        return self._now(self.thunk(node), node)

    def truth(self, node: ast.expr) -> Thunk:
        """Whether an assertion holds; plain truth, but a comparison is ours."""
        inner = self.thunk(node)
        if self._is_pure(node):
            raise NotLiftable(f"line {node.lineno} asserts nothing about the program")
        return lambda results: bool(inner(results))

    def call_place(self, node: ast.expr) -> int:
        """The place of the program's call that an expression is."""
        if not isinstance(node, ast.Call) or (path := self._path(node.func)) is None:
            raise NotLiftable(f"line {node.lineno}: {ast.unparse(node)[:60]} is no call of the program")
        return self._call(node, path)

    def thunk(self, node: ast.expr) -> Thunk:
        """The expression as a function of the results of the program's calls."""
        maker = getattr(self, f"_of_{type(node).__name__}", None)
        if maker is None:
            raise NotLiftable(f"line {node.lineno}: {ast.unparse(node)[:60]}")
        made: Thunk = maker(node)
        return made

    def _of_Constant(self, node: ast.Constant) -> Thunk:
        value = node.value
        if value is Ellipsis:
            raise NotLiftable(f"line {node.lineno}: ...")
        return lambda results: value

    def _of_Name(self, node: ast.Name) -> Thunk:
        name = node.id
        if name in self.pure:
            value = self.pure[name]
            return lambda results: copy.deepcopy(value)  # the tests' lists are theirs
        if name in self.names:
            return self.names[name]
        if name in TYPES and name not in self.paths:
            kind = TYPES[name]
            return lambda results: kind
        if (known := self.functions.get(name)) in CONSTANTS:
            return lambda results: CONSTANTS[known]
        raise NotLiftable(f"line {node.lineno}: the name {name}")

    def _of_Attribute(self, node: ast.Attribute) -> Thunk:
        name = ast.unparse(node)
        if name not in CONSTANTS:
            raise NotLiftable(f"line {node.lineno}: {name[:60]}")
        return lambda results: CONSTANTS[name]

    def _of_List(self, node: ast.List) -> Thunk:
        parts = self._all(node.elts)
        return lambda results: [part(results) for part in parts]

    def _of_Tuple(self, node: ast.Tuple) -> Thunk:
        parts = self._all(node.elts)
        return lambda results: tuple(part(results) for part in parts)

    def _of_Set(self, node: ast.Set) -> Thunk:
        parts = self._all(node.elts)
        return lambda results: {part(results) for part in parts}

    def _of_Dict(self, node: ast.Dict) -> Thunk:
        keys = self._all([key for key in node.keys if key is not None])
        values = self._all(node.values)
        if len(keys) != len(values):
            raise NotLiftable(f"line {node.lineno}: ** in a dict")
        return lambda results: {key(results): value(results) for key, value in zip(keys, values, strict=True)}

    def _of_UnaryOp(self, node: ast.UnaryOp) -> Thunk:
        inner = self.thunk(node.operand)
        if isinstance(node.op, ast.Not):
            return lambda results: not inner(results)
        act = UNARY[type(node.op)]
        return lambda results: act(_number(inner(results)))

    def _of_BoolOp(self, node: ast.BoolOp) -> Thunk:
        parts = self._all(node.values)
        if isinstance(node.op, ast.And):
            return lambda results: all(part(results) for part in parts)
        return lambda results: any(part(results) for part in parts)

    def _of_BinOp(self, node: ast.BinOp) -> Thunk:
        left, right = self.thunk(node.left), self.thunk(node.right)
        act = BINARY.get(type(node.op))
        pure = self._is_pure(node)
        if act is None or (isinstance(node.op, ast.Pow) and not pure):
            raise NotLiftable(f"line {node.lineno}: {ast.unparse(node)[:60]}")

        def run(results: Sequence[Result]) -> Any:
            one, other = left(results), right(results)
            if pure:
                _small_enough(node.op, one, other, node)
                return act(one, other)
            if isinstance(node.op, ast.Add) and type(one) is type(other) and type(one) in (str, list, tuple):
                return act(one, other)
            return act(_number(one), _number(other))

        return run

    def _of_Subscript(self, node: ast.Subscript) -> Thunk:
        whole = self.thunk(node.value)
        if isinstance(node.slice, ast.Slice):
            bounds = [node.slice.lower, node.slice.upper, node.slice.step]
            parts = [None if bound is None else self.thunk(bound) for bound in bounds]
            return lambda results: whole(results)[slice(*(part and part(results) for part in parts))]
        key = self.thunk(node.slice)
        return lambda results: whole(results)[key(results)]

    def _of_Compare(self, node: ast.Compare) -> Thunk:
        operands = [node.left, *node.comparators]
        parts = [self._approx(one) or self.thunk(one) for one in operands]
        pure = [self._is_pure(one) for one in operands]
        steps = [
            comparison(type(op), swap=pure[place] and not pure[place + 1])
            for place, op in enumerate(node.ops)
        ]

        def run(results: Sequence[Result]) -> bool:
            values = [part(results) for part in parts]
            return all(step(values[place], values[place + 1]) for place, step in enumerate(steps))

        return run

    def _of_Call(self, node: ast.Call) -> Thunk:
        if (path := self._path(node.func)) is not None:
            place = self._call(node, path)
            return lambda results: results[place].get()
        name = self._function(node.func)
        if name == "isinstance" and len(node.args) == 2:
            value, kind = self._all(node.args)
            return lambda results: is_instance(value(results), kind(results))
        pure = all(map(self._is_pure, node.args)) and all(self._is_pure(one.value) for one in node.keywords)
        function = (PURE_FUNCTIONS if pure else FUNCTIONS).get(name)
        if function is None or any(keyword.arg is None for keyword in node.keywords):
            raise NotLiftable(f"line {node.lineno}: {ast.unparse(node)[:60]}")
        args = self._all(node.args)
        kwargs = {str(keyword.arg): self.thunk(keyword.value) for keyword in node.keywords}
        return lambda results: function(
            *(part(results) for part in args), **{key: part(results) for key, part in kwargs.items()}
        )

    def _approx(self, node: ast.expr) -> Thunk | None:
        if not isinstance(node, ast.Call) or self._function(node.func) != "pytest.approx":
            return None
        given = {str(keyword.arg): self.value(keyword.value) for keyword in node.keywords}
        if len(node.args) != 1 or set(given) - {"rel", "abs"}:
            raise NotLiftable(f"line {node.lineno}: {ast.unparse(node)[:60]}")
        relative = given.get("rel", 0.0 if "abs" in given else 1e-6)
        approx = Approx(self.value(node.args[0]), relative, given.get("abs", 1e-12))
        return lambda results: approx

    def _call(self, node: ast.Call, path: str) -> int:
        if any(keyword.arg is None for keyword in node.keywords):
            raise NotLiftable(f"line {node.lineno}: ** in a call")
        args = tuple(self.value(one) for one in node.args)
        kwargs = {str(keyword.arg): self.value(keyword.value) for keyword in node.keywords}
        try:
            encode([*args, *kwargs.values()])
        except NotPlain as error:
            raise NotLiftable(f"line {node.lineno} passes {error}") from error
        self.calls.append(Call(path, args, kwargs))
        return len(self.calls) - 1

    def _path(self, node: ast.expr) -> str | None:
        """`f`, `solution.f`, `Solution().f` where they are the program's; None for all else."""
        if isinstance(node, ast.Name):
            return self._candidate(node.id)
        if not isinstance(node, ast.Attribute):
            return None
        if isinstance(node.value, ast.Name) and node.value.id == "solution":
            return node.attr
        made = node.value
        if isinstance(made, ast.Call) and not made.args and not made.keywords:
            inner = self._path(made.func)
            return None if inner is None or "." in inner else f"{inner}().{node.attr}"
        return None

    def _candidate(self, name: str) -> str | None:
        if name in self.paths:
            return self.paths[name]
        known = name in self.names or name in self.pure or name in self.functions or name in self.hidden
        # A program must not be able to put its own `all` or `len` in the place of the tests'.
        return None if known or hasattr(builtins, name) or name in ("math", "pytest", "unittest") else name

    def _function(self, node: ast.expr) -> str:
        name = ast.unparse(node)
        return self.functions.get(name, "" if name in self.hidden or name in self.names else name)

    def _is_pure(self, node: ast.AST) -> bool:
        """Whether it can be worked out without the program."""
        if isinstance(node, ast.Name) and node.id in self.names:
            return False
        if isinstance(node, ast.Call) and self._path(node.func) is not None:
            return False
        return all(map(self._is_pure, ast.iter_child_nodes(node)))

    def _now(self, thunk: Thunk, node: ast.expr) -> Any:
        try:
            value = thunk(())
        except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError) as error:
            raise NotLiftable(f"line {node.lineno}: {type(error).__name__}") from error
        if isinstance(value, (str, bytes, list, tuple, set, dict)) and len(value) > MAX_SIZE:
            raise NotLiftable(f"line {node.lineno} makes a value of {len(value)} items")
        return value

    def _all(self, nodes: Sequence[ast.expr]) -> list[Thunk]:
        return [self.thunk(node) for node in nodes]

    def _bind(self, name: str, value: Any) -> None:
        self._forget(name)
        self.pure[name] = value

    def _forget(self, name: str) -> None:
        for names in (self.names, self.pure, self.paths, self.functions):
            names.pop(name, None)
        self.hidden.discard(name)


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float, complex)):
        raise Failed("arithmetic with what is no number")
    return value


def _small_enough(op: ast.operator, left: Any, right: Any, node: ast.expr) -> None:
    """Refuse `10**10**10` and `[0] * 10**10` of a test before they are worked out."""
    if isinstance(op, ast.Pow) and not (isinstance(right, (int, float)) and abs(right) <= MAX_EXPONENT):
        raise NotLiftable(f"line {node.lineno}: a power that large")
    if isinstance(op, ast.Mult):
        for one, other in ((left, right), (right, left)):
            sized = isinstance(one, (str, bytes, list, tuple)) and isinstance(other, int)
            if sized and len(one) * other > MAX_SIZE:
                raise NotLiftable(f"line {node.lineno}: a value that large")
