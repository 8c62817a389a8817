"""A service's name and a request -> its answer, from a process that all workers of all pools share.

A verifier that leans on something heavy (a model, a server of another library) says so in its policy:

    Policy(..., services=(Service("package.module", {"model": "..."}),))

Whoever opens a VerifierPool on it gets the service started first, once per process however many pools and
workers there are: `python -m MODULE SOCKET OPTIONS`, which must answer HTTP on that Unix socket, and
`GET /health` with status 200 as soon as it is ready. It may `os.exec` any server that can do that. MODULE may
also be path/to/file.py. service_keeper.py starts, watches and ends it; this file is what runs beside the
verifier. Nothing but JSON travels.
"""

import contextlib
import hashlib
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

HEALTH = "/health"
GIVEN_UP = "given_up"  # beside the socket: why nobody starts the service again
RETRY_S = 0.2
LEAST_S = 0.5  # of a check's time are kept to say that the service was late
TELL_S = 2.0
MAX_TOLD = 256  # hints that wait to be sent, each as large as a group of attempts
MAX_CUT = 2  # requests during which the service died, before it is not asked the same again
log = logging.getLogger(__name__)


class ServiceLost(RuntimeError):
    """The service gave no answer in time: the verdict is undecided, never a reward."""


@dataclass(frozen=True, slots=True)
class Service:
    """A process to be shared: two that are equal are one."""

    module: str  # run as `python -m MODULE SOCKET OPTIONS`
    options: Mapping[str, Any] = field(default_factory=dict)  # plain data; it gets them as JSON
    ready_s: float = 600.0  # how long it may take until it is healthy: loading a model takes minutes

    @property
    def key(self) -> str:
        """What it is known by, the same in every process; ValueError for options that are no plain data."""
        try:
            told = json.dumps([self.module, dict(self.options)], sort_keys=True)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"service {self.module}: its options cannot be written as JSON ({error})"
            ) from error
        return hashlib.sha256(told.encode()).hexdigest()[:16]


_addresses: dict[str, str] = {}  # key -> the path of the socket
_now = threading.local()  # the check that this thread is judging: when it will be killed


def announce(addresses: Mapping[str, str]) -> None:
    """Tell this process where services are: their keys and the paths of their sockets."""
    _addresses.update(addresses)


def forget(addresses: Mapping[str, str]) -> None:
    """What was announced is closed; a newer address of the same service stays."""
    for key, address in addresses.items():
        if _addresses.get(key) == address:
            del _addresses[key]


def address_of(service: Service) -> str:
    """The path of its Unix socket; ServiceLost when no pool of this process or its parent has started it."""
    try:
        return _addresses[service.key]
    except KeyError:
        raise ServiceLost(
            f"the service {service.module} is not running: judge through a VerifierPool, which starts it"
        ) from None


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Requests within end before the check that makes them is killed, which would blame the attempt."""
    before = getattr(_now, "ends", None)
    _now.ends = time.monotonic() + seconds - min(LEAST_S, seconds / 4)
    try:
        yield
    finally:
        _now.ends = before


def seconds_left(timeout_s: float) -> float:
    """`timeout_s`, or less where the check that this thread is judging ends before."""
    ends: float | None = getattr(_now, "ends", None)
    return timeout_s if ends is None else min(timeout_s, ends - time.monotonic())


def ask(service: Service, path: str, request: Mapping[str, Any], *, timeout_s: float) -> Any:
    """POST a JSON object and return the answer's JSON.

    A service that is being started again is waited for, as long as the time lasts: what is asked must be
    safe to ask twice. ServiceLost when there is no answer by then, or at once when nobody will start it
    again; ValueError with the service's own line when it says that the request is wrong (status 400).
    """
    import httpx

    address = address_of(service)
    ends = time.monotonic() + seconds_left(timeout_s)
    body, trouble, num_cut = json.dumps(request).encode(), "no time was left to ask", 0
    while (left := ends - time.monotonic()) > 0:
        try:
            answer = client(address).post(path, content=body, timeout=left, headers=JSON)
            if answer.status_code == 200:
                return answer.json()
            trouble = f"status {answer.status_code}: {' '.join(answer.text.split())[:200]}"
            if answer.status_code == 400:
                raise ValueError(answer.text.strip()[:500])
            if answer.status_code != 503:
                break
        except httpx.TimeoutException:
            trouble = f"no answer within {timeout_s:g} s"
            break
        except httpx.ConnectError:
            trouble = "it is not running; it is started again"
            if why := given_up(address):
                raise ServiceLost(f"the service {service.module} ended for good: {why}") from None
        except (httpx.TransportError, json.JSONDecodeError) as error:
            num_cut += 1
            trouble = f"it died while it was asked ({type(error).__name__})"
            if num_cut >= MAX_CUT:
                break
        time.sleep(max(0.0, min(RETRY_S, ends - time.monotonic())))
    raise ServiceLost(f"the service {service.module} gave no answer: {trouble}")


def tell(service: Service, path: str, request: Mapping[str, Any]) -> None:
    """POST a JSON object in the background, and do not look at what comes of it: a hint that may be lost.

    At most MAX_TOLD wait; beyond, the oldest are dropped, and counted in `teller().num_dropped`.
    """
    address, body = address_of(service), json.dumps(request).encode()

    def post() -> None:
        with contextlib.suppress(Exception):
            client(address).post(path, content=body, timeout=TELL_S, headers=JSON)

    teller().put(post)


class Teller:
    """One thread that makes posts in order. Of more than `most` waiting ones the oldest are dropped.

    The oldest, because its check is the first to ask for itself; the sender never waits, since it is the loop
    that hands out checks.
    """

    def __init__(self, most: int) -> None:
        self.most, self.num_dropped = most, 0
        self._waiting: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        threading.Thread(target=self._post, name="service-hints", daemon=True).start()

    def put(self, post: Callable[[], None]) -> None:
        """Queue a post; returns at once."""
        with self._changed:
            if len(self._waiting) >= self.most:
                self._waiting.popleft()
                self.num_dropped += 1
                if self.num_dropped == 1:
                    log.warning("more than %d hints to services wait; the oldest are dropped", self.most)
            self._waiting.append(post)
            self._changed.notify()

    def _post(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                post = self._waiting.popleft()
            post()


@lru_cache(maxsize=1)
def teller() -> Teller:
    """This process's own."""
    return Teller(MAX_TOLD)


JSON = {"content-type": "application/json"}


@lru_cache(maxsize=64)
def client(address: str) -> "httpx.Client":
    """A client of the server at this Unix socket; threads may share it."""
    import httpx

    limits = httpx.Limits(max_connections=256, max_keepalive_connections=64)
    transport = httpx.HTTPTransport(uds=address, limits=limits)
    return httpx.Client(transport=transport, base_url="http://service", trust_env=False)


def given_up(address: str) -> str:
    """Why the service at this address is not started again; empty while it runs or will."""
    with contextlib.suppress(OSError):
        return Path(address).with_name(GIVEN_UP).read_text().strip()
    return "" if Path(address).parent.is_dir() else "its pool was closed"
