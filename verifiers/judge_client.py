"""Questions -> replies of an OpenAI-compatible endpoint: retries, rate limit, deadlines, costs counted.

Works with chat and plain completions, over TCP or a Unix socket (`unix:///path/to.sock`). The key is read
from the environment at each start, sent in a header, and never written anywhere.
"""

import email.utils
import json
import math
import os
import queue
import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx

from verigrad.verifiers.judge_base import OnReply, Question, Reply
from verigrad.verifiers.judge_prompts import PLAIN_ENDING

MAX_BODY = 8 * 2**20  # bytes of an answer; more is not read
MAX_WAIT_S = 300.0  # that a Retry-After is honoured for; a longer one counts as a failure
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
TOP_LOGPROBS = 20  # the most that OpenAI's own endpoint gives
AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
FATAL = frozenset({401, 402, 403, 404})
Api = Literal["chat", "completions"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a judge is reached and how it is asked."""

    url: str  # http(s)://HOST/v1, or unix:///path/to.sock
    model: str
    api: Api = "chat"
    api_key_env: str = "OPENAI_API_KEY"
    temperature: float = 0.0
    max_tokens: int = 256
    logprobs: bool = True  # ask for the probabilities of the choices
    concurrency: int = 8
    requests_per_minute: float = 0.0  # 0: no limit
    retries: int = 4
    timeout_s: float = 60.0  # of one request, from its start to the last byte
    price_in: float = 0.0  # of a million tokens
    price_out: float = 0.0
    max_cost: float = 0.0  # 0: no limit
    extra: Mapping[str, Any] = field(default_factory=dict)  # more fields of every request

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https", "unix") or not (parts.netloc or parts.path.strip("/")):
            raise ValueError(
                f"judge url {self.shown_url!r}: expected http://HOST/v1, https://HOST/v1 or unix:///PATH"
            )
        if parts.username or parts.password:
            raise ValueError(
                f"judge url {self.shown_url!r} holds a user name or password; put the key into an "
                "environment variable and name that"
            )
        if not self.model:
            raise ValueError(f"judge url {self.shown_url!r} needs the model's name there; name it")
        if not (self.key.isascii() and self.key.isprintable() and " " not in self.key):
            raise ValueError(
                f"${self.api_key_env} holds a blank, a line break or a letter beyond ASCII, as no key does; "
                "set it to the key alone"
            )

    @property
    def key(self) -> str:
        """What the environment holds now; empty without one."""
        return os.environ.get(self.api_key_env, "").strip() if self.api_key_env else ""

    @property
    def shown_url(self) -> str:
        """The URL without what may be secret: user, password and query."""
        parts = urlsplit(self.url)
        host = parts.netloc.rpartition("@")[2]
        return f"{parts.scheme}://{host}{parts.path}"


class _Trouble(Exception):
    """Why a request gave no reply, and whether to try again."""

    def __init__(
        self,
        says: str,
        *,
        again: bool,
        fatal: bool = False,
        after_s: float | None = None,
        tokens: tuple[int, int] = (0, 0),
    ) -> None:
        """`tokens`: asked and answered, which are paid for all the same."""
        super().__init__(says)
        self.again, self.fatal, self.after_s, self.tokens = again, fatal, after_s, tokens


class JudgeClient:
    """A judge behind an endpoint; see judge_base.Judge. Threads may share one."""

    special_tokens: Sequence[str] = ()  # those of common templates are neutralised for every judge

    def __init__(self, endpoint: Endpoint, *, spent: float = 0.0) -> None:
        """`spent`: costs of earlier starts, which count towards max_cost."""
        self.endpoint, self.spent = endpoint, spent
        self._key = endpoint.key
        parts = urlsplit(endpoint.url)
        socket = parts.path if parts.scheme == "unix" else None
        limits = httpx.Limits(max_connections=endpoint.concurrency)
        self._client = httpx.Client(
            transport=httpx.HTTPTransport(uds=socket, limits=limits) if socket else None,
            base_url="http://judge/v1/" if socket else f"{endpoint.shown_url.rstrip('/')}/",
            params=parts.query or None,
            headers={"authorization": f"Bearer {self._key}"} if self._key else {},
            limits=limits,
            trust_env=not socket,
        )
        self._lock = threading.Lock()
        self._next_start = 0.0
        self._closing = threading.Event()
        self._random = random.Random()

    def __enter__(self) -> "JudgeClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give up what is waited for, and end the connections."""
        self._closing.set()
        self._client.close()

    @property
    def identity(self) -> dict[str, Any]:
        """Model, place and manner; never the key."""
        place = self.endpoint
        return {"model": place.model, "url": place.shown_url, "api": place.api,
                "temperature": place.temperature}  # fmt: skip

    def ask(
        self,
        questions: Sequence[Question],
        *,
        on_reply: OnReply | None = None,
        deadline: float | None = None,
    ) -> list[Reply]:
        """See judge_base.Judge. After a fatal reply, and after `deadline`, nothing more is asked.

        An exception, as of Ctrl-C, ends it at once: requests under way are left behind.
        """
        replies: list[Reply | None] = [None] * len(questions)
        todo, done = queue.SimpleQueue[int](), queue.SimpleQueue[tuple[int, Reply | BaseException]]()
        stop = threading.Event()
        reason: list[str] = []

        def one(position: int) -> Reply:
            if stop.is_set():
                return Reply(None, error=f"not asked: {reason[0] if reason else 'stopped'}", fatal=True)
            reply = self.ask_one(questions[position], deadline=deadline)
            if reply.fatal:
                reason.append(reply.error)
                stop.set()
            return reply

        def work() -> None:
            while True:
                try:
                    position = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    done.put((position, one(position)))
                except BaseException as error:
                    done.put((position, error))

        for position in range(len(questions)):
            todo.put(position)
        try:
            for _ in range(min(self.endpoint.concurrency, len(questions))):
                # Daemons, and no executor: that would wait for its requests, here and when Python exits.
                threading.Thread(target=work, name="judge", daemon=True).start()
            for _ in questions:
                position, reply = done.get()
                if isinstance(reply, BaseException):
                    raise reply
                replies[position] = reply
                if on_reply is not None:
                    on_reply(position, reply)
        except BaseException:
            reason.append("interrupted")
            stop.set()
            self._closing.set()
            raise
        return [reply for reply in replies if reply is not None]

    def ask_one(self, question: Question, *, deadline: float | None = None) -> Reply:
        """One question with its retries; none is started after `deadline` (time.monotonic)."""
        started, trouble, tokens = time.monotonic(), "no time was left to ask", (0, 0)

        def failed(says: str, *, fatal: bool = False) -> Reply:
            seconds = time.monotonic() - started
            return Reply(None, None, *tokens, self._cost(tokens), seconds, self._clean(says), fatal)

        for attempt in range(self.endpoint.retries + 1):
            if why := self._may_not_start(deadline):
                return failed(why, fatal=self._over_the_limit)
            try:
                reply = self._request(question, started, deadline)
                tokens = (tokens[0] + reply.tokens_in, tokens[1] + reply.tokens_out)
                return replace(reply, tokens_in=tokens[0], tokens_out=tokens[1], cost=self._cost(tokens))
            except _Trouble as error:
                trouble, tokens = str(error), (tokens[0] + error.tokens[0], tokens[1] + error.tokens[1])
                if not error.again:
                    return failed(trouble, fatal=error.fatal)
                wait = self._wait_s(attempt, error.after_s)
                if wait is None or attempt == self.endpoint.retries:
                    break
                if deadline is not None and time.monotonic() + wait >= deadline:
                    break
                if self._closing.wait(wait):
                    break
        tries = f" after {attempt + 1} tries" if attempt else ""
        return failed(f"{trouble}{tries}")

    def _may_not_start(self, deadline: float | None) -> str:
        """Waits for the rate limit; why a request may not be made, or ""."""
        place = self.endpoint
        if self._over_the_limit:
            return f"the costs reached judge.max_cost = {place.max_cost:g} ({self.spent:.4f} spent); raise it"
        if place.requests_per_minute:
            with self._lock:
                start = max(self._next_start, time.monotonic())
                self._next_start = start + 60 / place.requests_per_minute
            if deadline is not None and start >= deadline:
                return "the rate limit left no time to ask"
            self._closing.wait(max(0.0, start - time.monotonic()))
        if self._closing.is_set():
            return "the judge was closed"
        return "no time was left to ask" if deadline is not None and time.monotonic() >= deadline else ""

    @property
    def _over_the_limit(self) -> bool:
        return 0 < self.endpoint.max_cost <= self.spent

    def _wait_s(self, attempt: int, after_s: float | None) -> float | None:
        if after_s is not None:
            return after_s if after_s <= MAX_WAIT_S else None
        with self._lock:
            longest: float = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**attempt)
            return longest * self._random.uniform(0.5, 1.0)

    def _request(self, question: Question, started: float, deadline: float | None) -> Reply:
        ends = time.monotonic() + self.endpoint.timeout_s
        if deadline is not None:
            ends = min(ends, deadline)
        path = "chat/completions" if self.endpoint.api == "chat" else "completions"
        status, headers, body = self._exchange(path, self._payload(question), ends)
        if status != 200:
            raise self._refusal(status, headers, body)
        tokens = (0, 0)
        try:
            answer = json.loads(body)
            tokens = self._counted(_tokens(answer))
            if _cut_off(answer, question):
                says = f"the reply was cut off at max_tokens = {self.endpoint.max_tokens}"
                raise _Trouble(says, again=False, tokens=tokens)
            text, probs = _read_reply(answer, question)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            says = f"the answer of {self.endpoint.shown_url} is no completion"
            says = f"{says} ({type(error).__name__}: {_line(str(error))})"
            raise _Trouble(says, again=True, tokens=tokens) from None
        return Reply(text, probs, *tokens, self._cost(tokens), time.monotonic() - started)

    def _counted(self, tokens: tuple[int, int]) -> tuple[int, int]:
        """The tokens of an answer, their price added to what was spent: also one of no use is paid for."""
        with self._lock:
            self.spent += self._cost(tokens)
        return tokens

    def _cost(self, tokens: tuple[int, int]) -> float:
        return (tokens[0] * self.endpoint.price_in + tokens[1] * self.endpoint.price_out) / 1e6

    def _payload(self, question: Question) -> dict[str, Any]:
        place = self.endpoint
        payload: dict[str, Any] = {"model": place.model, "temperature": place.temperature,
                                   "max_tokens": place.max_tokens, **place.extra}  # fmt: skip
        if place.temperature:
            payload["seed"] = question.seed % 2**31
        wants = place.logprobs and bool(question.choices)
        if place.api == "chat":
            payload["messages"] = [{"role": "user", "content": question.text}]
            return payload | ({"logprobs": True, "top_logprobs": TOP_LOGPROBS} if wants else {})
        payload["prompt"] = f"{question.text}{PLAIN_ENDING}"
        return payload | ({"logprobs": TOP_LOGPROBS} if wants else {})

    def _exchange(
        self, path: str, payload: Mapping[str, Any], ends: float
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body, all of it by `ends`; an endpoint that drips bytes is late too."""
        late = f"{self.endpoint.shown_url} gave no answer within {self.endpoint.timeout_s:g} s"
        try:
            left = max(0.05, ends - time.monotonic())
            with self._client.stream("POST", path, json=dict(payload), timeout=left) as response:
                body = bytearray()
                for part in response.iter_bytes():
                    body += part
                    if time.monotonic() > ends:
                        raise _Trouble(late, again=True)
                    if len(body) > MAX_BODY:
                        raise _Trouble("the answer has more than 8 MiB", again=False)
                return response.status_code, response.headers, bytes(body)
        except httpx.TimeoutException:
            raise _Trouble(late, again=True) from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            says = f"{self.endpoint.shown_url} cannot be reached or broke off"
            raise _Trouble(f"{says} ({type(error).__name__}: {_line(str(error))})", again=True) from None

    def _refusal(self, status: int, headers: Mapping[str, str], body: bytes) -> _Trouble:
        told = f"{self.endpoint.shown_url} answered status {status}: {self._clean(_message(body))}"
        if status in FATAL:
            key = f"; the key is read from ${self.endpoint.api_key_env}" if status in (401, 403) else ""
            return _Trouble(f"{told}{key}", again=False, fatal=True)
        return _Trouble(told, again=status in AGAIN, after_s=_retry_after(headers))

    def _clean(self, says: str) -> str:
        """One line without the key, which an endpoint may echo."""
        return _line(says.replace(self._key, "***") if len(self._key) > 3 else says, most=400)


def _tokens(answer: Any) -> tuple[int, int]:
    """Asked and answered, as far as the endpoint tells."""
    usage = answer.get("usage") or {}
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    num_in, num_out = (n if isinstance(n, int) and 0 <= n < 2**40 else 0 for n in counts)
    return num_in, num_out


def _cut_off(answer: Any, question: Question) -> bool:
    """Whether the limit of tokens ended a text that is of no use without its end, or that never began."""
    choice = answer["choices"][0]
    said = choice["message"]["content"] if "message" in choice else choice["text"]
    return choice.get("finish_reason") == "length" and not (said and question.choices)


def _read_reply(answer: Any, question: Question) -> tuple[str, dict[str, float] | None]:
    """Text and probabilities of the choices; raises for what is no completion."""
    choice = answer["choices"][0]
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    if not isinstance(text, str):
        raise ValueError(f"its text is {text!r:.40}")
    text = text.encode("utf-8", "replace").decode()  # JSON may hold half a surrogate pair, a file may not
    return text, choice_probs(_top(choice.get("logprobs")), text, question) if question.choices else None


def _top(logprobs: Any) -> list[tuple[str, dict[str, float]]]:
    """Each token of the answer with the likeliest tokens in its place; empty where none are told."""
    if not isinstance(logprobs, dict):
        return []
    if isinstance(content := logprobs.get("content"), list):
        return [(at["token"], {one["token"]: float(one["logprob"]) for one in at.get("top_logprobs") or []})
                for at in content]  # fmt: skip
    tokens, tops = logprobs.get("tokens"), logprobs.get("top_logprobs")
    if not isinstance(tokens, list) or not isinstance(tops, list):
        return []
    return [(token, {name: float(value) for name, value in (top or {}).items()})
            for token, top in zip(tokens, tops, strict=False)]  # fmt: skip


def choice_probs(
    tokens: Sequence[tuple[str, Mapping[str, float]]], text: str, question: Question
) -> dict[str, float] | None:
    """Probability of each choice at the place of the judgement, as far as the likeliest tokens tell it.

    None where the judgement is no single token there, or where one choice may be the beginning of another (a
    tokenizer that writes 10 as 1 and 0): a hard judgement remains.
    """
    names = {choice.casefold(): choice for choice in question.choices}
    places = [at for at, (token, _) in enumerate(tokens) if token.strip().casefold() in names]
    if not places or (not question.reasons and len(places) > 1):
        return None
    probs = dict.fromkeys(question.choices, 0.0)
    for token, logprob in tokens[places[-1]][1].items():
        if (choice := names.get(token.strip().casefold())) and logprob <= 0.0:
            probs[choice] += math.exp(logprob)
    begins = [c for c in question.choices if any(o != c and o.startswith(c) for o in question.choices)]
    longer = {c: [o for o in question.choices if o != c and o.startswith(c)] for c in begins}
    unclear = any(probs[c] > 0.02 and not any(probs[o] for o in longer[c]) for c in begins)
    return None if unclear or not any(probs.values()) else probs


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from a header in seconds or as a date."""
    value = headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _message(body: bytes) -> str:
    """What an endpoint says is wrong, in one line."""
    try:
        answer = json.loads(body)
        error = answer.get("error", answer)
        says = error.get("message") if isinstance(error, dict) else error
    except (ValueError, AttributeError, RecursionError):
        says = body[:300].decode("utf-8", "replace")
    return str(says).strip() or "no reason given"


def _line(text: str, *, most: int = 200) -> str:
    shown = "".join(c if c.isprintable() else " " for c in text)
    shown = " ".join(shown.split())
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."
