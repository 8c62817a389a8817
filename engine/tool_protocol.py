"""How a model calls tools: what its prompt says of them, turns -> calls, results -> the ids that follow.

Two protocols. ChatProtocol is the chat template's own: the text it puts between an assistant's turn and the
next one is found once, by rendering a conversation of placeholders, and only that text and the results are
encoded; what the model sampled is never encoded again. TextProtocol is plain tags, for models without such a
template: `<tool>NAME BODY</tool>` ends the model's turn, `<result>...</result>` is put behind it.
"""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verigrad.engine.config import ConfigError
from verigrad.engine.prompts import Prompter
from verigrad.engine.tool_formats import CHAT_FORMATS, CLOSE, OPEN, text_calls
from verigrad.engine.tools import Call, Tool
from verigrad.verifiers.base import Attempt

RESULT_OPEN, RESULT_CLOSE = "<result>", "</result>"
TAG = re.compile("|".join(map(re.escape, (OPEN, CLOSE, RESULT_OPEN, RESULT_CLOSE))))
HELP = f"""You can use tools. To use one, write {OPEN}NAME ARGUMENT{CLOSE}: your turn ends there, and what \
the tool says follows between {RESULT_OPEN} and {RESULT_CLOSE}. Several arguments are given as a JSON \
object, {OPEN}NAME {{"first": ..., "second": ...}}{CLOSE}. When you are done, answer without using a tool.

The tools:"""

REWRITES = "it writes earlier turns anew when others follow, so tokens would not stay as sampled"


class Unusable(Exception):
    """The chat template cannot carry tool calls that we can read; says why."""


class ToolProtocol(ABC):
    """One way to talk of tools. `stop` holds strings that end a turn, besides the end-of-sequence token."""

    name: str
    stop: tuple[str, ...] = ()

    @abstractmethod
    def template_settings(self, tools: Sequence[Tool]) -> dict[str, Any]:
        """What the chat template is given to tell of the tools."""

    @abstractmethod
    def preface(self, tools: Sequence[Tool]) -> str:
        """What the prompt's text says of the tools."""

    @abstractmethod
    def calls(self, text: str, tools: Mapping[str, Tool]) -> list[Call]:
        """The calls in one turn; none means that the model has answered."""

    @abstractmethod
    def result_ids(self, results: Sequence[str], *, last_id: int) -> list[int]:
        """What follows a turn that ended with the token `last_id`: the results, one per call, up to where the
        model goes on."""

    @property
    @abstractmethod
    def opening(self) -> str:
        """What the model's next turn begins with, besides what it samples."""


class TextProtocol(ToolProtocol):
    """Plain tags."""

    name = "text"
    stop = (CLOSE,)
    opening = ""

    def __init__(self, prompter: Prompter) -> None:
        self.prompter = prompter

    def template_settings(self, tools: Sequence[Tool]) -> dict[str, Any]:
        """See ToolProtocol."""
        return {}

    def preface(self, tools: Sequence[Tool]) -> str:
        """See ToolProtocol."""
        return "\n".join([HELP, *map(_line, tools)]) if tools else ""

    def calls(self, text: str, tools: Mapping[str, Tool]) -> list[Call]:
        """See ToolProtocol."""
        return text_calls(text, tools)

    def result_ids(self, results: Sequence[str], *, last_id: int) -> list[int]:
        """See ToolProtocol. Tags inside a result get a space, so that it cannot end itself."""
        ids: list[int] = []
        for result in results:
            told = TAG.sub(lambda tag: f"< {tag[0][1:]}", result)
            ids += self.prompter.markup_ids(RESULT_OPEN)
            ids += self.prompter.inert_ids(told)
            ids += self.prompter.markup_ids(RESULT_CLOSE)
        return ids


class ChatProtocol(ToolProtocol):
    """The chat template's own format."""

    name = "chat"

    def __init__(self, prompter: Prompter, tools: Sequence[Tool], *, eos_ids: Sequence[int]) -> None:
        """Raises Unusable when the template has no place for results, or an unknown format of calls."""
        self.prompter, self.eos_ids = prompter, frozenset(eos_ids)
        self._template = _Template(prompter.tokenizer, [tool.schema for tool in tools], eos_ids)
        self.format = self._template.call_format()
        self._between = {1: self._template.between(1)}
        self._template.require_stable()

    def template_settings(self, tools: Sequence[Tool]) -> dict[str, Any]:
        """See ToolProtocol."""
        return {"tools": [tool.schema for tool in tools]} if tools else {}

    def preface(self, tools: Sequence[Tool]) -> str:
        """See ToolProtocol."""
        return ""

    def calls(self, text: str, tools: Mapping[str, Tool]) -> list[Call]:
        """See ToolProtocol. What stands in a thought is no call."""
        return CHAT_FORMATS[self.format](Attempt(text).final_text, tools)

    def result_ids(self, results: Sequence[str], *, last_id: int) -> list[int]:
        """See ToolProtocol."""
        num = len(results)
        if num not in self._between:
            self._between[num] = self._template.between(num)
        between = self._between[num]
        encode = self.prompter.markup_ids
        ids = encode(between.texts[0] if last_id in self.eos_ids else between.end + between.texts[0])
        for result, text in zip(results, between.texts[1:], strict=True):
            told = json.dumps(result, ensure_ascii=False)[1:-1] if between.as_json else result
            ids += self.prompter.inert_ids(told) + encode(text)
        return ids

    @property
    def opening(self) -> str:
        """See ToolProtocol. Some templates open the next turn's thought themselves."""
        text = self._between[1].texts[-1]
        before, tag, after = text.rpartition("<think>")
        return f"{tag}{after}" if before and tag and not after.strip() else ""


@dataclass(frozen=True, slots=True)
class _Between:
    """What a chat template puts between the end of one turn and the start of the next one."""

    end: str  # spelling of the token that ended the turn
    texts: Sequence[str]  # around the results: one more than there are results
    as_json: bool  # results are written as JSON strings


class _Template:
    """A chat template, asked by conversations of placeholders."""

    NAME, VALUE = "probe", "value00000"
    ASKED: Mapping[str, Any] = {"role": "user", "content": "question00000"}

    def __init__(self, tokenizer: Any, schemas: Sequence[Mapping[str, Any]], eos_ids: Sequence[int]) -> None:
        self.tokenizer, self.schemas = tokenizer, list(schemas)
        self.ends = [end for i in eos_ids if (end := tokenizer.convert_ids_to_tokens(i))]

    def render(self, messages: Sequence[Mapping[str, Any]], *, more: bool) -> str:
        """The conversation as text, up to where the model goes on if there is `more`."""
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    list(messages), tokenize=False, add_generation_prompt=more, tools=self.schemas
                )
            )
        except Exception as error:  # Jinja's own errors, and whatever the template's author raises
            raise Unusable(f"it fails on tool calls: {str(error).splitlines()[0]:.200}") from error

    def call_format(self) -> str:
        """The name of the format in CHAT_FORMATS that reads a call as this template writes it."""
        before, start = self.render([self.ASKED], more=False), self.render([self.ASKED], more=True)
        text = self.render([self.ASKED, self._called(1)], more=False)
        if not text.startswith(before):
            raise Unusable(REWRITES)
        said = text.removeprefix(start if text.startswith(start) else before)
        for end in self.ends:
            said = said.partition(end)[0]
        expected = [Call(self.NAME, {"argument": self.VALUE})]
        for name, parse in CHAT_FORMATS.items():
            if parse(said, {}) == expected:
                return name
        raise Unusable(f"it writes calls in a format that is not known here: {said!r:.200}")

    def between(self, num: int, *, before: Sequence[Mapping[str, Any]] = ()) -> _Between:
        """What stands around `num` results of one turn, in a conversation that begins with `before`."""
        marks = [f'result"{index:05d}"' for index in range(num)]
        turns = [*(before or [self.ASKED]), self._called(num), *map(self._answered, marks)]
        text = self.render(turns, more=True)
        _, found, tail = text.rpartition(self.VALUE)
        places = [(place, end) for end in self.ends if (place := tail.find(end)) >= 0]
        if not found or not places:
            raise Unusable(
                f"it ends a turn with none of the tokens that end a completion ({', '.join(self.ends)})"
            )
        place, end = min(places)
        tail = tail[place + len(end) :]
        as_json = marks[0] not in tail
        texts = []
        for mark in [json.dumps(mark)[1:-1] if as_json else mark for mark in marks]:
            text, found, tail = tail.partition(mark)
            if not found or mark in tail:
                raise Unusable("it leaves out a tool's result, or says it twice")
            texts.append(text)
        return _Between(end, [*texts, tail], as_json)

    def require_stable(self) -> None:
        """Refuse a template that rewrites earlier turns, or writes later results in another way."""
        first = [self.ASKED, self._called(1), self._answered("seen00000")]
        asked, once = self.render([self.ASKED], more=False), self.render(first, more=False)
        twice = self.render([*first, self._called(1), self._answered("more00000")], more=False)
        stable = once.startswith(asked) and twice.startswith(once)
        if not stable or self.between(1, before=first) != self.between(1):
            raise Unusable(
                "it writes earlier turns anew when others follow, so tokens would not stay as sampled"
            )

    def _called(self, num: int) -> dict[str, Any]:
        call = {"name": self.NAME, "arguments": {"argument": self.VALUE}}
        calls = [{"type": "function", "id": f"call{n:05d}", "function": call} for n in range(num)]
        return {"role": "assistant", "content": "", "tool_calls": calls}

    def _answered(self, result: str) -> dict[str, Any]:
        return {"role": "tool", "name": self.NAME, "tool_call_id": "call00000", "content": result}


def choose(wanted: str, prompter: Prompter, tools: Sequence[Tool], *, eos_ids: Sequence[int]) -> ToolProtocol:
    """The protocol of [agent]: `auto` takes the chat template's where it is usable.

    Raises ConfigError when "chat" is asked for and cannot be.
    """
    if wanted == "text":
        return TextProtocol(prompter)
    try:
        if not prompter.uses_chat:
            raise Unusable("there is none, or prompts.chat = 'never'")
        return ChatProtocol(prompter, tools, eos_ids=eos_ids)
    except Unusable as why:
        if wanted == "auto":
            return TextProtocol(prompter)
        raise ConfigError(
            f"agent.protocol = 'chat' cannot use this model's chat template: {why}. "
            "Set agent.protocol = 'text'"
        ) from why


def _line(tool: Tool) -> str:
    properties = tool.schema["function"]["parameters"].get("properties", {})
    arguments = ", ".join(f"{name}: {one.get('type', 'any')}" for name, one in properties.items())
    return f"- {tool.name}({arguments}): {' '.join(tool.description.split())}"
