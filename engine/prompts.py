"""Problem -> prompt token ids, and completion ids -> the text a verifier reads.

The only place where text becomes tokens. What the sampler emitted is decoded, never encoded again: encoding a
decoded text may give other tokens than those that were sampled.
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from verigrad.engine.config import ConfigError, PromptsConfig
from verigrad.verifiers.base import Problem

INSTRUCTIONS = {
    "plain": "",
    "boxed": "Think it through, then give only your final answer inside \\boxed{}.",
    "think_answer": (
        "Do your thinking between <think> and </think>, then give only your final answer between <answer> "
        "and </answer>."
    ),
}
"""What each template adds below the problem."""

TAGS = frozenset(
    {"<think>", "</think>", "<answer>", "</answer>", "<tool>", "</tool>", "<tool_call>", "</tool_call>"}
)
"""Kept in a completion's text even where the tokenizer calls them special: verifiers and tools read them."""


class Prompter:
    """Turns problems into token ids and completions back into text, with one tokenizer."""

    def __init__(self, tokenizer: Any, cfg: PromptsConfig) -> None:
        """Refuses choices this tokenizer cannot carry out."""
        has_template = bool(getattr(tokenizer, "chat_template", None))
        if cfg.chat == "always" and not has_template:
            raise ConfigError(
                "prompts.chat = 'always', but this tokenizer has no chat template. Set prompts.chat = "
                "'auto', or use an instruct model."
            )
        self.uses_chat = has_template and cfg.chat != "never"
        if cfg.system and not self.uses_chat:
            raise ConfigError(
                f"prompts.system is set, but without a chat template (prompts.chat = {cfg.chat!r}) there "
                "is nowhere to put it. Remove it, or use a tokenizer with a chat template."
            )
        self.tokenizer = tokenizer
        self.cfg = cfg
        kept = {tokenizer.convert_tokens_to_ids(tag) for tag in TAGS}
        self._dropped_ids = frozenset(tokenizer.all_special_ids) - kept
        added = {i: str(token) for i, token in tokenizer.added_tokens_decoder.items() if len(str(token)) > 1}
        self._added_ids = frozenset(added) - {tokenizer.unk_token_id}
        spellings = sorted(map(re.escape, added.values()), key=len, reverse=True)
        self._spelled = re.compile("|".join(spellings) or r"(?!)")
        self.opening = self._opening()

    def _opening(self) -> str:
        """What a completion begins with for the verifier: the prefill, after any thought the template opens.

        Some chat templates end in `<think>`. Without that tag a completion cut off in its thought would read
        as prose, and a box in the middle of it as the answer.
        """
        prefill = self.cfg.prefill
        if not self.uses_chat or "<think>" in prefill:
            return prefill
        rendered = self.text_for(Problem("", "x")).removesuffix(prefill)
        before, tag, after = rendered.rpartition("<think>")
        return f"{tag}{after}{prefill}" if before and tag and not after.strip() else prefill

    @property
    def template_hash(self) -> str:
        """Changes with anything, besides the problem itself, that shapes a prompt."""
        return hashlib.sha256(json.dumps(self.shape(), sort_keys=True).encode()).hexdigest()[:16]

    def shape(self) -> dict[str, Any]:
        """What `template_hash` is taken of."""
        return {
            "prompts": self.cfg.model_dump(),
            "instruction": INSTRUCTIONS[self.cfg.template],
            "chat_template": self.tokenizer.chat_template if self.uses_chat else None,
        }

    def token_ids(self, problem: Problem) -> list[int]:  # [L]
        """The prompt as the sampler gets it: exactly one BOS where the model has one, prefill at the end."""
        text = self.text_for(problem)
        bos = self.tokenizer.bos_token_id
        if bos is None:
            ids = list(self.tokenizer.encode(text, add_special_tokens=not self.uses_chat))
        else:
            ids = self._ids_with_bos(text, bos)
        if not ids:
            raise ConfigError(f"problem {problem.id}: its prompt has no tokens. Give it a prompt.")
        return ids

    def _ids_with_bos(self, text: str, bos: int) -> list[int]:
        """Chat templates may write BOS and the tokenizer may add it again: exactly one is kept.

        None is added where neither does: such a model was trained without.
        """
        marked = text.startswith(self.tokenizer.bos_token)
        while text.startswith(self.tokenizer.bos_token):
            text = text.removeprefix(self.tokenizer.bos_token)
        ids = list(self.tokenizer.encode(text, add_special_tokens=False))
        adds = list(self.tokenizer.encode("", add_special_tokens=True))[:1] == [bos]
        wanted = marked or (adds and not self.uses_chat)
        return [bos, *ids] if wanted else ids

    def text_for(self, problem: Problem) -> str:
        """The prompt as text, special tokens written out."""
        messages = self._messages(problem)
        if self.uses_chat:
            rendered = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, **self.template_settings(problem)
            )
            prefill = self.cfg.prefill
            if prefill.strip() and rendered.rstrip().endswith(prefill.strip()):
                return str(rendered)  # some templates open <think> themselves
            return f"{rendered}{prefill}"
        if len(messages) != 1:
            raise ConfigError(
                f"problem {problem.id} is a conversation of {len(messages)} messages, which needs a chat "
                f"template, and prompts.chat = {self.cfg.chat!r} gives none here. "
                "Use a model with a chat template, or prompts of one message."
            )
        preface = self.preface(problem)
        asked = f"{preface}\n\n{messages[0]['content']}" if preface else messages[0]["content"]
        return f"{asked}{self.cfg.prefill}"

    def template_settings(self, problem: Problem) -> dict[str, Any]:
        """What the chat template is given besides the messages."""
        return {}

    def preface(self, problem: Problem) -> str:
        """Text in front of everything: of the system message where there is a chat template."""
        return ""

    def _messages(self, problem: Problem) -> list[dict[str, Any]]:
        """The conversation, the system message in front and the instruction below the last message."""
        if isinstance(problem.prompt, str):
            messages = [{"role": "user", "content": problem.prompt}]
        else:
            messages = [dict(message) for message in problem.prompt]
        if instruction := INSTRUCTIONS[self.cfg.template]:
            last = messages[-1]
            if not isinstance(last["content"], str):
                raise ConfigError(
                    f"problem {problem.id}: prompts.template = {self.cfg.template!r} adds text to the last "
                    "message, whose content is not text. Set prompts.template = 'plain'."
                )
            messages[-1] = {**last, "content": f"{last['content']}\n\n{instruction}"}
        if self.cfg.system:
            if messages[0]["role"] == "system":
                raise ConfigError(
                    f"problem {problem.id} brings its own system message, and prompts.system is set too. "
                    "Keep one."
                )
            messages = [{"role": "system", "content": self.cfg.system}, *messages]
        if self.uses_chat and (preface := self.preface(problem)):
            messages = _prefaced(messages, preface)
        return messages

    def text_of(self, completion_ids: Sequence[int]) -> str:
        """What the verifier reads: opening and completion, without special tokens but with thinking tags."""
        return f"{self.opening}{self.decoded(completion_ids)}"

    def decoded(self, completion_ids: Sequence[int]) -> str:
        """The completion alone."""
        kept = [i for i in completion_ids if i not in self._dropped_ids]
        return str(self.tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def markup_ids(self, text: str) -> list[int]:
        """Text of ours inside a conversation, its special tokens taken as such."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def inert_ids(self, text: str) -> list[int]:
        """Text nobody vouches for, such as a tool's output: what it spells out is never a special token.

        Every added token's spelling is cut in two and encoded as the plain text it is.
        """
        ids: list[int] = []
        start = 0
        while match := self._spelled.search(text, start):
            ids += self.markup_ids(text[start : match.start() + 1])
            start = match.start() + 1
        ids += self.markup_ids(text[start:])
        # A tokenizer may rewrite text before it looks for its tokens, so that a cut is not enough.
        return [i for i in ids if i not in self._added_ids]

    def refusal_above(self, max_tokens: int) -> Callable[[Problem], str | None]:
        """Says of a problem why it cannot be asked, or None: its prompt has more than `max_tokens` tokens."""

        def refusal(problem: Problem) -> str | None:
            num_tokens = len(self.token_ids(problem))
            if num_tokens <= max_tokens:
                return None
            return (
                f"the prompt has {num_tokens} tokens, more than rollout.max_prompt_tokens = {max_tokens}. "
                "Raise it, or leave the row out."
            )

        return refusal


def _prefaced(messages: list[dict[str, Any]], preface: str) -> list[dict[str, Any]]:
    """The conversation with text in front of its system message, or as one."""
    if messages[0]["role"] == "system" and isinstance(messages[0]["content"], str):
        first = {**messages[0], "content": f"{preface}\n\n{messages[0]['content']}"}
        return [first, *messages[1:]]
    return [{"role": "system", "content": preface}, *messages]
