"""Tool names -> plain functions with JSON schemas; a call's arguments -> what the model is told of it.

A tool is a plain function. A parameter called `sandbox` gets the episode's sandbox; the rest is what the
model fills in, and their annotations are its JSON schema (`Annotated[str, Field(description="...")]`
describes one). What it returns is shown to the model: text as it is, None as nothing, anything else as JSON.
What it raises is shown as an error, but for SandboxError, which ends the episode undecided. It runs in a
thread of the engine's own process, so it is as trusted as the recipe; what the model wrote belongs into the
sandbox.
"""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Annotated, Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, PydanticUserError, ValidationError, create_model

from verigrad.engine import makers
from verigrad.engine.config import ConfigError
from verigrad.sandboxes.base import ExecResult, ProgramFault, Sandbox, SandboxError

GROUP = "verigrad.tools"
SANDBOX = "sandbox"  # the parameter that is given, not asked for
NOTHING = "(no output)"
ERROR = "error: "  # what the observation of a failed call begins with


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool: how the model is told of it, and what is called."""

    name: str
    description: str
    function: Callable[..., Any]
    arguments: type[BaseModel]  # what the model fills in
    takes_sandbox: bool

    @property
    def schema(self) -> dict[str, Any]:
        """As chat templates take it: `{"type": "function", "function": {"name", "description", ...}}`."""
        parameters = _untitled(self.arguments.model_json_schema())
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": function}

    @property
    def parameters(self) -> list[str]:
        """Names of the arguments, in order."""
        return list(self.arguments.model_fields)


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call as the model wrote it. With `error` it could not be read, and this is what to tell it."""

    name: str
    arguments: Mapping[str, Any]
    error: str = ""


@dataclass(frozen=True, slots=True)
class Observation:
    """What came of a call, as text for the model."""

    text: str
    failed: bool = False  # malformed, unknown, wrong arguments, or the tool raised


def load(names: Sequence[str]) -> dict[str, Tool]:
    """Tools by the name the model calls them: built-in, entry point of `verigrad.tools`, or file.py:name.

    Raises ConfigError for what is not there, is no tool, or shares a name with another.
    """
    installed = {point.name: point.value for point in entry_points(group=GROUP)}
    found: dict[str, Tool] = {}
    for name in names:
        reference = BUILTIN.get(name) or installed.get(name, name)
        if not makers.is_maker(reference):
            known = ", ".join(sorted({*BUILTIN, *installed}))
            raise ConfigError(f"agent.tools: {name!r} is not known; known: {known} (or path/file.py:name)")
        tool = bind(makers.find(reference).function)
        if tool.name in found:
            raise ConfigError(f"agent.tools names two tools that are both called {tool.name!r}; keep one")
        found[tool.name] = tool
    return found


def bind(function: Callable[..., Any]) -> Tool:
    """A plain function as a tool. Raises ConfigError when its signature makes no JSON schema."""
    name = function.__name__
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == SANDBOX:
            continue
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ConfigError(
                f"tool {name!r}: its parameter {parameter} has no name to call it by; give it one"
            )
        if parameter.name not in hints:
            raise ConfigError(f"tool {name!r}: its parameter {parameter.name!r} has no type; annotate it")
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[parameter.name] = (hints[parameter.name], default)
    try:
        arguments = create_model(f"{name}_arguments", __config__=ConfigDict(extra="forbid"), **fields)
        tool = Tool(
            name=name,
            description=inspect.getdoc(function) or "",
            function=function,
            arguments=arguments,
            takes_sandbox=SANDBOX in inspect.signature(function).parameters,
        )
        _ = tool.schema
    except (PydanticUserError, NameError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"tool {name!r}: its parameters make no JSON schema: {reason}. Use plain types"
        ) from error
    if not tool.description:
        raise ConfigError(f"tool {name!r} has no docstring, which is what the model is told of it; write one")
    return tool


def run(call: Call, tools: Mapping[str, Tool], sandbox: Sandbox, *, max_chars: int) -> Observation:
    """Call the tool; whatever is wrong with the call is told to the model. SandboxError goes through."""
    if call.error:
        return Observation(clipped(f"{ERROR}{call.error}", max_chars), failed=True)
    tool = tools.get(call.name)
    if tool is None:
        known = ", ".join(tools)
        return Observation(
            clipped(f"{ERROR}there is no tool {call.name!r:.60}; there are: {known}", max_chars), True
        )
    try:
        given = tool.arguments.model_validate(_read(call.arguments, tool))
        arguments = {name: getattr(given, name) for name in tool.parameters}
        returned = tool.function(**arguments, **({SANDBOX: sandbox} if tool.takes_sandbox else {}))
        return Observation(clipped(as_text(returned) or NOTHING, max_chars))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "arguments"
        return Observation(clipped(f"{ERROR}{tool.name}: {where}: {first['msg']}", max_chars), failed=True)
    except SandboxError:
        raise
    except Exception as error:  # the boundary: what a tool raises is data for the model
        told = (
            str(error) if isinstance(error, ValueError | ProgramFault) else f"{type(error).__name__}: {error}"
        )
        return Observation(clipped(f"{ERROR}{tool.name}: {told}", max_chars), failed=True)


def _read(arguments: Mapping[str, Any], tool: Tool) -> dict[str, Any]:
    """The arguments, those that came as text though the tool wants no text read as JSON, if they are."""
    properties = tool.schema["function"]["parameters"].get("properties", {})
    read = dict(arguments)
    for name, value in arguments.items():
        if isinstance(value, str) and properties.get(name, {}).get("type", "string") != "string":
            with suppress(ValueError, RecursionError):
                read[name] = json.loads(value)
    return read


def as_text(value: Any) -> str:
    """What a tool returned, as the model is shown it."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def clipped(text: str, max_chars: int) -> str:
    """At most `max_chars` characters of the text itself: its middle is left out, and said to be."""
    text = text.encode("utf-8", "replace").decode()  # half a surrogate pair, which JSON can hold, is no text
    if len(text) <= max_chars:
        return text
    head = (max_chars + 1) // 2
    tail = max_chars - head
    return f"{text[:head]}\n[{len(text) - max_chars} characters left out]\n{text[len(text) - tail :]}"


def shell(command: Annotated[str, Field(description="The command")], sandbox: Sandbox) -> str:
    """Run a shell command and return what it prints. Files stay from call to call, processes do not."""
    return printed(sandbox.exec(["bash", "-c", command]))


def python(code: Annotated[str, Field(description="The program")], sandbox: Sandbox) -> str:
    """Run a Python program and return what it prints. Files stay from call to call, variables do not."""
    return printed(sandbox.exec(["python3", "-c", code]))


def edit_file(
    path: Annotated[str, Field(description="The file, relative to the working folder")],
    new: Annotated[str, Field(description="The whole file, or what takes the place of `old`")],
    sandbox: Sandbox,
    old: Annotated[str, Field(description="A piece that the file holds exactly once")] = "",
) -> str:
    """Write a file, or replace one piece of it: with `old`, that piece becomes `new`."""
    if not old:
        sandbox.write_file(path, new.encode())
        return f"wrote {path}"
    text = sandbox.read_file(path).decode()
    if (count := text.count(old)) != 1:
        raise ValueError(f"{path} holds `old` {count} times, expected once; give more of what surrounds it")
    sandbox.write_file(path, text.replace(old, new).encode())
    return f"edited {path}"


def printed(result: ExecResult) -> str:
    """Standard output and error of a command, and how it ended unless well."""
    text = (result.stdout + result.stderr).decode("utf-8", "replace").rstrip("\n")
    if result.ok:
        return text
    if result.status == "exited":
        ended = f"exit status {result.exit_code}"
    else:
        ended = result.detail or (f"signal {result.signal}" if result.signal else result.status)
    return f"{text}\n[{ended}]" if text else f"[{ended}]"


BUILTIN = {name: f"verigrad.engine.tools:{name}" for name in ("shell", "python", "edit_file")}
"""Name -> reference."""


def _untitled(schema: Any) -> Any:
    """Without pydantic's titles, which repeat the names; a parameter that is called `title` stays."""
    if not isinstance(schema, dict):
        return [_untitled(item) for item in schema] if isinstance(schema, list) else schema
    return {
        key: {name: _untitled(one) for name, one in value.items()}
        if key == "properties"
        else _untitled(value)
        for key, value in schema.items()
        if not (key == "title" and isinstance(value, str))
    }
