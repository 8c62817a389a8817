"""A row of `{"messages"}` or `{"prompt", "completion"}` -> an example: token ids, and which are learned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from verigrad.engine.config import ConfigError
from verigrad.engine.data import check_prompt, is_unicode, missing
from verigrad.engine.prompts import Prompter
from verigrad.engine.rows import BadRow
from verigrad.verifiers.base import Problem

Messages = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Source:
    """What a row says."""

    prompt: str | Messages  # a whole conversation where completion is None
    completion: str | None
    num_given: int = 0  # first messages of a conversation from which nothing is learned

    @property
    def asked(self) -> str | Messages:
        """What comes before the first thing learned."""
        if self.completion is not None or isinstance(self.prompt, str):
            return self.prompt
        first = next(i for i, message in enumerate(self.prompt) if message["role"] == "assistant")
        return self.prompt[:first]


@dataclass(frozen=True, slots=True)
class Example:
    """One row as tokens."""

    token_ids: Sequence[int]  # [L]
    loss_mask: Sequence[bool]  # [L] True where the token is learned


def to_source(row: Mapping[str, Any], columns: Mapping[str, str]) -> Source:
    """Name the columns and check the row; where it has both forms, `messages` is the one that is read."""
    values = renamed(row, columns)
    if values.get("messages") is not None:
        source = Source(check_conversation(values["messages"]), None)
    else:
        for name in ("prompt", "completion"):
            if name not in values:
                raise BadRow(missing(name, row, f'name it with data.columns = {{{name} = "..."}}'))
        source = Source(check_prompt(values["prompt"]), check_completion(values["completion"]))
    if not is_unicode(source.prompt) or not is_unicode(source.completion or ""):
        raise BadRow("has text with half a surrogate pair, which no tokenizer takes")
    return source


def renamed(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The row with our names for the columns that data.columns names."""
    values = dict(row)
    for ours, theirs in columns.items():
        if theirs not in row:
            raise BadRow(missing(theirs, row, f"data.columns says it is the {ours}; correct that"))
        values[ours] = row[theirs]
    return values


def check_completion(completion: Any) -> str:
    """Text that is not blank."""
    if not isinstance(completion, str):
        raise BadRow(
            f"has a completion that is {completion!r:.60}, expected text; or give the row 'messages'"
        )
    if not completion.strip():
        raise BadRow("has an empty completion, from which nothing can be learned")
    return completion


def check_conversation(messages: Any) -> Messages:
    """Messages that begin with somebody else and end with the assistant."""
    if not isinstance(messages, list | tuple) or not messages:
        raise BadRow(f"has messages that are {messages!r:.60}, expected a list of {{role, content}}")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise BadRow(f"has a message {number} that is {message!r:.60}, expected {{role, content}}")
        content = message.get("content")
        if not isinstance(content, str) or (message["role"] == "assistant" and not content.strip()):
            raise BadRow(f"has a message {number} ({message['role']}) whose content is no text")
    if messages[0]["role"] == "assistant" or messages[-1]["role"] != "assistant":
        raise BadRow("has messages that begin with the assistant, or end with another; nothing is answered")
    return [{k: v for k, v in message.items() if v is not None} for message in messages]


class Encoder:
    """Turns sources into examples of at most `max_length` tokens, with one tokenizer."""

    def __init__(
        self,
        prompter: Prompter,
        *,
        eos_ids: Sequence[int],
        max_length: int,
        setting: str = "sft.max_length",  # what sets it, for messages
    ) -> None:
        self.setting = setting
        self.prompter, self.tokenizer, self.max_length = prompter, prompter.tokenizer, max_length
        self.eos_ids = frozenset(eos_ids)
        own = self.tokenizer.eos_token_id
        self.eos_id = int(eos_ids[0] if own is None else own)

    def __call__(self, source: Source) -> Example:
        """The example; raises BadRow for what this tokenizer or the length forbids."""
        if source.completion is None:
            assert not isinstance(source.prompt, str)
            example = self._conversation(source.prompt, num_given=source.num_given)
        else:
            example = self._answer(source.prompt, source.completion)
        if len(example.token_ids) > self.max_length:
            raise BadRow(
                f"has {len(example.token_ids)} tokens, more than {self.setting} = {self.max_length}. "
                "Raise it, or leave the row out"
            )
        return example

    def completion_ids(self, completion: str) -> list[int]:
        """Token ids of a completion, with exactly one end-of-sequence token."""
        ids = list(self.tokenizer.encode(completion, add_special_tokens=False))
        return ids if ids and ids[-1] == self.eos_id else [*ids, self.eos_id]

    def _answer(self, prompt: str | Messages, completion: str) -> Example:
        """The prompt exactly as the sampler would be given it, then the completion."""
        before = self.prompter.token_ids(Problem("of a row", prompt))
        learned = self.completion_ids(completion)
        return Example([*before, *learned], [False] * len(before) + [True] * len(learned))

    def _conversation(self, messages: Messages, *, num_given: int) -> Example:
        """Every assistant turn after the first `num_given` messages is learned, up to the token that ends it.

        A turn's tokens are what the template adds to the tokens of all before it, generation prompt included.
        That these are a prefix is proved at each turn: a template that rewrites earlier turns is refused.
        """
        self._require_plain()
        ids: list[int] = []
        mask: list[bool] = []
        for number, message in enumerate(messages, 1):
            if message["role"] != "assistant":
                continue
            asked = self._render(messages[: number - 1], ask=True)
            whole = self._render(messages[:number], ask=False)
            before, after = self._ids(asked), self._ids(whole)
            if before[: len(ids)] != ids or after[: len(before)] != before:
                raise BadRow(
                    f"has a message {number} before which the chat template writes other text than without "
                    "it (templates that cut thoughts, or open one, do so). Give one row for each answer, as "
                    "'prompt' and 'completion'"
                )
            if message["content"].strip() not in whole[len(asked) :]:
                raise BadRow(
                    f"has a message {number} of which the chat template leaves out a part (some cut the "
                    "thought). Give the row as 'prompt' and 'completion'"
                )
            num_learned = self._num_up_to_end(after[len(before) :])
            mask += [False] * (len(before) - len(mask)) + [number > num_given] * num_learned
            mask += [False] * (len(after) - len(mask))
            ids = after
        last = max(i for i, learned in enumerate(mask) if learned)
        return Example(ids[: last + 1], mask[: last + 1])

    def _require_plain(self) -> None:
        cfg = self.prompter.cfg
        if not self.prompter.uses_chat:
            raise ConfigError(
                f"a row of 'messages' needs a chat template, and prompts.chat = {cfg.chat!r} gives none "
                "here; use a model with a chat template, or rows of 'prompt' and 'completion'"
            )
        for name in ("system", "prefill", "template"):
            if getattr(cfg, name) not in ("", "plain"):
                raise ConfigError(
                    f"prompts.{name} is set, and a row of 'messages' is taken as it is; remove the setting, "
                    "or use rows of 'prompt' and 'completion'"
                )

    def _render(self, messages: Messages, *, ask: bool) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
            )
        except (TemplateError, TypeError, ValueError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise BadRow(f"has messages that the chat template refuses: {reason}") from error

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))  # the template writes BOS itself

    def _num_up_to_end(self, turn: Sequence[int]) -> int:
        ends = [i for i, token in enumerate(turn) if token in self.eos_ids]
        if not ends:
            names = self.tokenizer.convert_ids_to_tokens(sorted(self.eos_ids))
            shown = self.tokenizer.decode(turn[-4:])
            raise ConfigError(
                f"the chat template ends an assistant's turn in {shown!r}, which holds none of the tokens "
                f"that end this model's completions ({', '.join(map(str, names))}), so it would never learn "
                "to stop; set eos_token_id in its generation_config.json, or use rows of 'prompt' and "
                "'completion'"
            )
        return ends[-1] + 1
