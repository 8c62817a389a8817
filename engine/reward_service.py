"""Answers to score, asked for over a Unix socket by any number of workers -> scores, batched on the device.

Started by verifiers/service_keeper.py for the verifiers of verifiers/learned_reward.py, so that one process
holds the model. Requests are JSON over HTTP:

    GET  /health     200 when the model is loaded; 503 while one batch takes longer than STUCK_S
    POST /prefetch   {"prompt", "texts"}: begin with these, somebody will ask for them
    POST /score      {"prompt", "texts", "solution"?} -> {"scores": [...], "mean", "std"}

What arrives within GATHER_S is scored together, and the same text of the same prompt once. A text that the
model cannot read (too long) is told apart from a model that fails: `unreadable` is the answer's own fault.
"""

import contextlib
import hashlib
import json
import logging
import os
import queue
import socketserver
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from verigrad.engine.config import ConfigError
from verigrad.engine.failures import WorkError

if TYPE_CHECKING:
    from verigrad.engine.reward_model import AnyRewardModel, Scored

GATHER_S = 0.005
MAX_BATCH = 256  # texts scored before any of them is answered
MAX_KNOWN = 100_000  # scores remembered
STUCK_S = 300.0
MAX_REQUEST = 64 * 2**20  # bytes
Score = Mapping[str, Any]
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Asked:
    """One text to score."""

    key: bytes
    prompt: Any
    text: str
    score: "Future[Score]" = field(default_factory=Future)


def is_lasting(error: Exception) -> bool:
    """Whether the device itself failed, as after an illegal access; memory that ran out is there again."""
    text = str(error)
    return "CUDA error" in text and "out of memory" not in text


class Batcher:
    """The model, and one thread that scores whatever is waiting; `ask` may be called from any thread."""

    def __init__(self, model: "AnyRewardModel", *, gather_s: float = GATHER_S) -> None:
        self.model, self.gather_s = model, gather_s
        self._waiting: queue.SimpleQueue[Asked] = queue.SimpleQueue()
        self._known: OrderedDict[bytes, Future[Score]] = OrderedDict()  # also what is being scored
        self._lock = threading.Lock()
        self._since: float | None = None  # when the batch was begun that is being scored
        self.num_batches = self.num_scored = 0
        threading.Thread(target=self._work, name="scores", daemon=True).start()

    def ask(self, prompt: Any, texts: Sequence[str]) -> "list[Future[Score]]":
        """Scores of these texts, now or later; a text that is known or on its way is not scored again."""
        prompt = _plain(prompt)
        before = json.dumps(prompt, sort_keys=True)
        scores = []
        for text in map(_plain, texts):
            key = hashlib.blake2b(f"{before}\x00{text}".encode(), digest_size=16).digest()
            with self._lock:
                known = self._known.get(key)
                if known is None:
                    asked = Asked(key, prompt, text)
                    known = self._known[key] = asked.score
                    if len(self._known) > MAX_KNOWN:
                        self._known.popitem(last=False)
                    self._waiting.put(asked)
                else:
                    self._known.move_to_end(key)
            scores.append(known)
        return scores

    @property
    def stuck(self) -> bool:
        """Whether one batch has been going on for too long."""
        since = self._since
        return since is not None and time.monotonic() - since > STUCK_S

    def _work(self) -> None:
        while True:
            batch = [self._waiting.get()]
            ends = time.monotonic() + self.gather_s
            while len(batch) < MAX_BATCH:
                try:
                    batch.append(self._waiting.get(timeout=max(0.0, ends - time.monotonic())))
                except queue.Empty:
                    break
            self._since = time.monotonic()
            self._score(batch)
            self._since = None

    def _score(self, batch: Sequence[Asked]) -> None:
        """Settle a batch; what fails together is tried one by one, so that no text loses its neighbours'."""
        try:
            scored = self.model.judge([one.prompt for one in batch], [one.text for one in batch])
            scores = [self._told(one, score) for one, score in zip(batch, scored, strict=True)]
        except Exception as error:  # out of memory on the device, for one
            if len(batch) > 1:
                for one in batch:
                    self._score([one])
                return
            log.exception("the reward model failed")
            if is_lasting(error):
                os._exit(1)  # nothing this process does on the device succeeds any more: start another
            line = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
            scores = [{"error": line}]
        self.num_batches, self.num_scored = self.num_batches + 1, self.num_scored + len(batch)
        for one, score in zip(batch, scores, strict=True):
            if "error" in score:  # not remembered: the next time it may be well
                with self._lock:
                    self._known.pop(one.key, None)
            one.score.set_result(score)

    def _told(self, one: Asked, scored: "Scored") -> Score:
        """One answer's score as it travels. What cannot be read is the answer's fault if an empty one can."""
        if scored.reward is not None:
            return {
                "reward": scored.reward,
                "members": list(scored.members),
                "disagreement": scored.disagreement,
                "steps": list(scored.steps),
            }
        at_fault = bool(one.text) and "not finite" not in scored.reason
        if at_fault and self.model.judge([one.prompt], [""])[0].reward is not None:
            return {"unreadable": scored.reason}
        return {"error": scored.reason}


def _plain(value: Any) -> Any:
    """Text of which every character can be encoded: half a surrogate pair becomes `?`."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """HTTP on a Unix socket, a thread for each connection."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, path: str, batcher: Batcher) -> None:
        self.batcher = batcher
        super().__init__(path, Handler)


class Handler(BaseHTTPRequestHandler):
    """One connection: any number of requests after each other."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """`/health`."""
        batcher = cast(Server, self.server).batcher
        told = {"batches": batcher.num_batches, "scored": batcher.num_scored, "pid": os.getpid()}
        self._reply(503 if batcher.stuck else 200, told)

    def do_POST(self) -> None:
        """`/prefetch` and `/score`."""
        batcher = cast(Server, self.server).batcher
        try:
            length = int(self.headers["content-length"])
            if not 0 <= length <= MAX_REQUEST:
                raise ValueError(f"a request of {length} bytes; at most {MAX_REQUEST}")
            request = json.loads(self.rfile.read(length))
            if not isinstance(request["texts"], list) or not all(
                isinstance(t, str) for t in request["texts"]
            ):
                raise TypeError("texts: expected a list of text")
            if self.path == "/score":
                return self._reply(200, answered(batcher, request))
            batcher.ask(request["prompt"], request["texts"])
        except (ValueError, KeyError, TypeError) as error:
            return self._reply(400, f"{type(error).__name__}: {error}")
        self._reply(200, {})

    def _reply(self, status: int, data: Any) -> None:
        body = json.dumps(data).encode()
        with contextlib.suppress(OSError):  # who asked is gone
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def address_string(self) -> str:
        """Of a Unix socket there is none."""
        return "a worker"

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not written down."""


def answered(batcher: Batcher, request: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to one request, when all its texts are scored."""
    scores = [score.result() for score in batcher.ask(request["prompt"], request["texts"])]
    read = [with_solution(score, request.get("solution", "")) for score in scores]
    return {"scores": read, "mean": batcher.model.card.mean, "std": batcher.model.card.std}


def with_solution(score: Score, solution: str) -> Score:
    """The score with another reading of its steps, where one is asked for."""
    if not solution or "steps" not in score:
        return score
    from verigrad.engine.reward_model import of_steps

    return {**score, "reward": of_steps(score["steps"], cast(Any, solution))}


def load(options: Mapping[str, Any]) -> "AnyRewardModel":
    """The model that the options name; ConfigError in one line when there is none or it may not be used."""
    from verigrad.engine import reward_model

    reference = str(options["model"])
    folder = reward_model.find(reference, seed=options["model_seed"], options=options["model_options"])
    reading = {key: options[key] for key in ("device", "dtype", "tokens_per_batch", "allow_biased",
                                             "trust_remote_code")}  # fmt: skip
    model = reward_model.load(folder, **reading)
    steps = isinstance(model, reward_model.ProcessRewardModel)
    if steps != (options["kind"] == "steps"):
        found, use = ("steps", "process_reward") if steps else ("whole answers", "reward_model")
        raise ConfigError(f"model = {reference!r} scores {found}; use the verifier {use!r}")
    if options["aggregate"]:
        if not isinstance(model, reward_model.Ensemble):
            raise ConfigError(f"aggregate has no effect: model = {reference!r} is one model, no ensemble")
        model.aggregate = options["aggregate"]
        if options["std_coef"] is not None:
            model.std_coef = options["std_coef"]
        # Its members are standardised; the numbers measured for another aggregate do not hold for this one.
        model.card = replace(model.card, mean=0.0, std=1.0)
    if options["measured"] and (model.card.mean is None or not model.card.std):
        raise ConfigError(
            f"model = {reference!r} has no mean and std of held-out rewards beside its weights; give both as "
            "options, or set standardise = false"
        )
    return model


def main() -> int:
    """Load the model and answer until killed; returns 2 for options that will not do, else 1."""
    path, options = sys.argv[1], json.loads(sys.argv[2])
    try:
        from verigrad.engine.machine import prepare_process

        prepare_process()
        model = load(options)
    except (ConfigError, WorkError) as error:
        print(f"verigrad: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    loading = f"{path}.new"  # the socket is there when it can be answered on
    with Server(loading, Batcher(model)) as server:
        Path(loading).rename(path)
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
