"""Test source -> calls to make in the program's process, and checks of what they return, made outside it.

`assert f(x) == literal` needs no test process: the call goes to the program, the comparison stays here.
Source that does more than this module understands is NotLiftable, and runs apart (code_tester.py).
Nothing is executed: expressions are worked out by a small interpreter with a fixed list of functions.
"""

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeGuard

from verigrad.verifiers import code_expression
from verigrad.verifiers.code_expression import Call, Expressions, NotLiftable, Result, Thunk
from verigrad.verifiers.code_holds import Failed

MAX_UNROLLED = 10_000  # statements of one test, loops written out
UNITTEST = {
    "assertEqual": ast.Eq, "assertListEqual": ast.Eq, "assertDictEqual": ast.Eq, "assertTupleEqual": ast.Eq,
    "assertSetEqual": ast.Eq, "assertNotEqual": ast.NotEq, "assertIn": ast.In, "assertNotIn": ast.NotIn,
    "assertIs": ast.Is, "assertGreater": ast.Gt, "assertLess": ast.Lt, "assertGreaterEqual": ast.GtE,
    "assertLessEqual": ast.LtE,
}  # fmt: skip
NONE_OR_NOT = {"assertIsNone": ast.Is, "assertIsNotNone": ast.IsNot}
PREPARATION = (
    ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.AugAssign,
    ast.Pass,
)  # fmt: skip
LINE = "line "
CHECKS = re.compile(r"assert|raise|fail|exit|check|test|verify|expect|compare|exec", re.IGNORECASE)
PLAIN_IMPORTS = ("math", "pytest", "unittest", "typing", "solution")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing a test asks of the results."""

    holds: Thunk
    line: int


@dataclass(slots=True)
class LiftedTest:
    """One required test: which calls it makes, and what must hold of them."""

    name: str
    checks: list[Check] = field(default_factory=list)

    def passes(self, results: Sequence[Result]) -> str:
        """ "" if every check holds, else why not, in a few words that say nothing of what was expected."""
        for check in self.checks:
            try:
                if not check.holds(results):
                    return f"the assertion in line {check.line} of the tests does not hold"
            except Failed as failed:
                return str(failed)
            except (TypeError, ValueError, ArithmeticError, LookupError, RecursionError):
                return f"line {check.line} of the tests cannot be worked out on what it returned"
        return ""


@dataclass(frozen=True, slots=True)
class Lifted:
    """The calls of all tests in order, and the tests."""

    calls: list[Call]
    tests: list[LiftedTest]


def lift(source: str, entry_point: str = "") -> Lifted:
    """The tests of a source as calls and checks.

    Raises NotLiftable, saying what stands in the way; SyntaxError where it is no Python.
    """
    tree = ast.parse(source)
    return _Lifter(entry_point).module(tree)


class _Lifter:
    def __init__(self, entry_point: str) -> None:
        self.calls: list[Call] = []
        self.tests: list[LiftedTest] = []
        self.entry_point = entry_point
        self.unrolled = 0
        self.functions: dict[str, ast.FunctionDef] = {}  # def check(candidate): ...

    def module(self, tree: ast.Module) -> Lifted:
        names = Expressions(self.calls, {}, entry_point=self.entry_point)
        for statement in tree.body:
            if isinstance(statement, ast.FunctionDef) and statement.name.startswith("test"):
                self._test_function(statement, names)
            elif isinstance(statement, ast.FunctionDef):
                self.functions[statement.name] = statement
                names.hide(statement.name)
            elif isinstance(statement, ast.ClassDef):
                self._test_class(statement, names)
            elif isinstance(statement, (ast.Assert, ast.For, ast.With)):
                self.tests.append(test := LiftedTest(f"{LINE}{statement.lineno}"))
                self._statement(statement, names, test)
            elif isinstance(statement, ast.If) and _is_main_guard(statement):
                continue
            else:
                self._module_statement(statement, names)
        if not self.tests:
            raise NotLiftable("no test stands at its top")
        return Lifted(self.calls, self.tests)

    def _module_statement(self, statement: ast.stmt, names: Expressions) -> None:
        checker = _called(statement)
        if checker is None or checker.func.id not in self.functions:  # type: ignore[attr-defined]
            unused = LiftedTest("")
            self._statement(statement, names, unused)
            if unused.checks:
                raise NotLiftable(f"line {statement.lineno} checks something outside a test")
            return
        function = self.functions[checker.func.id]  # type: ignore[attr-defined]
        parameters = _plain_parameters(function)
        if len(parameters) != len(checker.args) or checker.keywords:
            raise NotLiftable(f"the call in line {statement.lineno}")
        inner = names.copy()
        for name, given in zip(parameters, checker.args, strict=True):
            inner.bind_argument(name, given)
        for one in function.body:
            test = LiftedTest(f"{LINE}{one.lineno}")
            self._statement(one, inner, test)
            if test.checks:
                self.tests.append(test)

    def _test_function(self, function: ast.FunctionDef, names: Expressions) -> None:
        if function.decorator_list or _plain_parameters(function):
            raise NotLiftable(f"{function.name} has decorators or fixtures")
        self.tests.append(test := LiftedTest(function.name))
        self._body(function.body, names.copy(), test)
        if not test.checks:
            raise NotLiftable(f"{function.name} asserts nothing that can be seen from outside")

    def _test_class(self, found: ast.ClassDef, names: Expressions) -> None:
        if found.decorator_list or [ast.unparse(base) for base in found.bases] not in (
            [],
            ["unittest.TestCase"],
            ["TestCase"],
        ):
            raise NotLiftable(f"class {found.name}")
        for method in found.body:
            if _is_docstring(method):
                continue
            if not isinstance(method, ast.FunctionDef) or not method.name.startswith("test"):
                raise NotLiftable(f"class {found.name} holds more than tests")
            if method.decorator_list or _plain_parameters(method) != ["self"]:
                raise NotLiftable(f"{method.name} has decorators or fixtures")
            self.tests.append(test := LiftedTest(f"{found.name}.{method.name}"))
            inner = names.copy()
            inner.hide("self")
            self._body(method.body, inner, test)
            if not test.checks:
                raise NotLiftable(f"{method.name} asserts nothing that can be seen from outside")

    def _body(self, statements: Sequence[ast.stmt], names: Expressions, test: LiftedTest) -> None:
        for statement in statements:
            self._statement(statement, names, test)

    def _statement(self, statement: ast.stmt, names: Expressions, test: LiftedTest) -> None:
        self.unrolled += 1
        if self.unrolled > MAX_UNROLLED:
            raise NotLiftable(f"more than {MAX_UNROLLED} steps")
        line = statement.lineno
        if _is_docstring(statement) or isinstance(statement, ast.Pass):
            return
        if isinstance(statement, ast.Assert):
            test.checks.append(Check(names.truth(statement.test), line))
        elif isinstance(statement, (ast.Import, ast.ImportFrom)):
            _import(statement, names)
        elif isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            names.assign(statement.targets[0], statement.value)
        elif isinstance(statement, ast.For) and not statement.orelse:
            for item in names.items(statement.iter):
                names.unpack(statement.target, item)
                self._body(statement.body, names, test)
        elif isinstance(statement, ast.With):
            test.checks.append(Check(self._raises(statement, names), line))
        elif isinstance(statement, ast.Expr) and (method := _unittest_call(statement)):
            test.checks.append(Check(names.truth(method), line))
        else:
            raise NotLiftable(f"line {line} is a {type(statement).__name__}")

    def _raises(self, statement: ast.With, names: Expressions) -> Thunk:
        """`with pytest.raises(ValueError): f(x)`, and unittest's."""
        item = statement.items[0]
        context = item.context_expr
        kinds = ("pytest.raises", "self.assertRaises")
        if (
            len(statement.items) != 1
            or item.optional_vars is not None
            or not isinstance(context, ast.Call)
            or ast.unparse(context.func) not in kinds
            or len(context.args) != 1
            or context.keywords
            or not isinstance(context.args[0], ast.Name)
            or context.args[0].id not in code_expression.EXCEPTIONS
            or len(statement.body) != 1
            or not isinstance(statement.body[0], ast.Expr)
        ):
            raise NotLiftable(f"line {statement.lineno} is a with that is not understood")
        place = names.call_place(statement.body[0].value)
        wanted = context.args[0].id
        return lambda results: results[place].raised_one_of(wanted)


def _import(statement: ast.Import | ast.ImportFrom, names: Expressions) -> None:
    if isinstance(statement, ast.ImportFrom):
        if statement.module not in PLAIN_IMPORTS or statement.level:
            raise NotLiftable(f"it imports {statement.module}")
        for alias in statement.names:
            if statement.module == "solution" and alias.name != "*":
                names.bind_candidate(alias.asname or alias.name, alias.name)
            elif statement.module in ("math", "pytest"):
                names.bind_function(alias.asname or alias.name, f"{statement.module}.{alias.name}")
        return
    for alias in statement.names:
        if alias.name not in PLAIN_IMPORTS or alias.asname:
            raise NotLiftable(f"it imports {alias.name}")


def _called(statement: ast.stmt) -> ast.Call | None:
    """The call of a plain name that a statement consists of."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        call = statement.value
        return call if isinstance(call.func, ast.Name) else None
    return None


def _plain_parameters(function: ast.FunctionDef) -> list[str]:
    given = function.args
    if given.vararg or given.kwarg or given.kwonlyargs or given.defaults or given.posonlyargs:
        raise NotLiftable(f"{function.name} has special parameters")
    return [argument.arg for argument in given.args]


def _unittest_call(statement: ast.Expr) -> ast.expr | None:
    """`self.assertEqual(a, b)` as `a == b`."""
    call = statement.value
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
        return None
    if not isinstance(call.func.value, ast.Name) or call.func.value.id != "self" or call.keywords:
        return None
    name, args = call.func.attr, call.args
    if name in UNITTEST and len(args) in (2, 3):
        made: ast.expr = ast.Compare(args[0], [UNITTEST[name]()], [args[1]])
    elif name in NONE_OR_NOT and len(args) in (1, 2):
        made = ast.Compare(args[0], [NONE_OR_NOT[name]()], [ast.Constant(None)])
    elif name in ("assertTrue", "assertFalse") and len(args) in (1, 2):
        made = args[0] if name == "assertTrue" else ast.UnaryOp(ast.Not(), args[0])
    else:
        return None
    return ast.fix_missing_locations(ast.copy_location(made, statement))


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _is_main_guard(statement: ast.If) -> bool:
    return ast.unparse(statement.test) == "__name__ == '__main__'"


def required_tests(source: str) -> list[str]:
    """Names of all tests that must be reported: `test_it`, `TestClass.test_it`, or `line N`."""
    body = ast.parse(source).body
    return list(_test_functions(body)) or [
        f"{LINE}{statement.lineno}" for statement in body if not _is_preparation(statement)
    ]


def can_fail(source: str) -> bool:
    """Whether the tests look at anything: they assert, raise, or call what may do so for them.

    Only what certainly passes whatever the program returns is False, such as `print(f(1))`.
    """
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    own = {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
    called = {ast.unparse(node.func).rpartition(".")[2] for node in nodes if isinstance(node, ast.Call)}
    return any(isinstance(node, (ast.Assert, ast.Raise)) for node in nodes) or any(
        CHECKS.search(name) for name in called - own
    )


def _test_functions(body: Sequence[ast.stmt]) -> Iterator[str]:
    for statement in body:
        if _is_test(statement):
            yield statement.name
        elif isinstance(statement, ast.ClassDef) and _holds_tests(statement):
            yield from (f"{statement.name}.{method.name}" for method in statement.body if _is_test(method))


def _is_test(statement: ast.stmt) -> TypeGuard[ast.FunctionDef | ast.AsyncFunctionDef]:
    return isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)) and statement.name.startswith(
        "test"
    )


def _is_preparation(statement: ast.stmt) -> bool:
    """A statement of plain source that tests nothing by itself."""
    guard = isinstance(statement, ast.If) and _is_main_guard(statement)
    return guard or _is_docstring(statement) or isinstance(statement, PREPARATION)


def _holds_tests(found: ast.ClassDef) -> bool:
    return found.name.startswith("Test") or any("TestCase" in ast.unparse(base) for base in found.bases)


def with_check(source: str, entry_point: str) -> str:
    """HumanEval's form made complete: a `check(candidate)` that nobody calls is called."""
    tree = ast.parse(source)
    defined = any(isinstance(one, ast.FunctionDef) and one.name == "check" for one in tree.body)
    called = any((call := _called(one)) and ast.unparse(call.func) == "check" for one in tree.body)
    return f"{source}\n\ncheck({entry_point})\n" if defined and not called and entry_point else source
