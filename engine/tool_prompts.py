"""A Prompter for models with tools: prompts that tell of them, and what a problem's episodes start from."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from verigrad.engine import tool_protocol, tools
from verigrad.engine.episode_row import EpisodeSetup, setup_of
from verigrad.engine.prompts import Prompter
from verigrad.engine.settings import AgentConfig, PromptsConfig
from verigrad.engine.tool_protocol import ToolProtocol
from verigrad.engine.tools import Tool
from verigrad.verifiers.base import Problem


class ToolPrompter(Prompter):
    """Tells of the tools in every prompt, in the protocol that the model can use."""

    def __init__(
        self, tokenizer: Any, prompts: PromptsConfig, agent: AgentConfig, *, eos_ids: Sequence[int]
    ) -> None:
        """Raises ConfigError for a tool or a protocol that cannot be."""
        self.agent, self.tools = agent, tools.load(agent.tools)
        self._protocol: ToolProtocol | None = None
        super().__init__(tokenizer, prompts)
        every = list(self.tools.values())
        self._protocol = tool_protocol.choose(agent.protocol, self, every, eos_ids=eos_ids)
        self.opening = self._opening()

    @property
    def protocol(self) -> ToolProtocol:
        """How the model calls tools."""
        assert self._protocol is not None, "chosen when this was made"
        return self._protocol

    def setup_of(self, problem: Problem) -> EpisodeSetup:
        """What the problem's episodes start from. ValueError says what is wrong with the row."""
        return setup_of(problem, self.tools)

    def tools_of(self, problem: Problem) -> Mapping[str, Tool]:
        """The tools that the problem allows."""
        allowed = self.setup_of(problem).tools
        return self.tools if allowed is None else {name: self.tools[name] for name in allowed}

    def template_settings(self, problem: Problem) -> dict[str, Any]:
        """See Prompter."""
        if self._protocol is None or not self.agent.explain:
            return {}
        return self._protocol.template_settings(list(self.tools_of(problem).values()))

    def preface(self, problem: Problem) -> str:
        """See Prompter."""
        if self._protocol is None or not self.agent.explain:
            return ""
        return self._protocol.preface(list(self.tools_of(problem).values()))

    def refusal_above(self, max_tokens: int) -> Callable[[Problem], str | None]:
        """See Prompter; also a row that no episode can start from."""
        too_long = super().refusal_above(max_tokens)

        def refusal(problem: Problem) -> str | None:
            try:
                self.setup_of(problem)
            except ValueError as error:
                return f"{error}. Correct the row, or leave it out."
            return too_long(problem)

        return refusal

    def shape(self) -> dict[str, Any]:
        """See Prompter."""
        told = {
            "protocol": self.protocol.name,
            "tools": [tool.schema for tool in self.tools.values()],
            "explain": self.agent.explain,
        }
        return {**super().shape(), "agent": told}
