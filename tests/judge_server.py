"""A scripted OpenAI-compatible endpoint: it says what a test tells it to, and fails as told."""

import json
import math
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Scripted(ThreadingHTTPServer):
    """`answer(question, number)` -> text, or a dict of what to do instead; see Handler."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, answer, *, uds=None):
        self.answer, self.requests, self.seen_headers = answer, [], []
        self.lock = threading.Lock()
        self.running, self.most_running = 0, 0
        if uds is None:
            super().__init__(("127.0.0.1", 0), Handler)
            self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        else:
            self.address_family = socket.AF_UNIX
            super().__init__(str(uds), Handler)
            self.url = f"unix://{uds}"

    def server_bind(self):
        self.socket.bind(self.server_address)
        if self.address_family == socket.AF_UNIX:
            self.server_name, self.server_port = "judge", 0
        else:
            self.server_address = self.socket.getsockname()
            self.server_name, self.server_port = self.server_address[:2]

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def handle_error(self, *_):
        """A client that went away is part of the tests."""


class Handler(BaseHTTPRequestHandler):
    """What an answer may hold: status, headers, body, text, probs, usage, sleep, cut, drip."""

    protocol_version = "HTTP/1.1"

    def address_string(self):
        return "test"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.reply(200, {}, b"{}")

    def do_POST(self):
        server = self.server
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        asked = request["messages"][-1]["content"] if "messages" in request else request["prompt"]
        with server.lock:
            number = len(server.requests)
            server.requests.append(request)
            server.seen_headers.append(dict(self.headers))
            server.running += 1
            server.most_running = max(server.most_running, server.running)
        try:
            self.answer(request, server.answer(asked, number))
        finally:
            with server.lock:
                server.running -= 1

    def answer(self, request, does):
        does = {"text": does} if isinstance(does, str) else does
        time.sleep(does.get("sleep", 0))
        if does.get("cut"):
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        body = does.get("body")
        if body is None:
            body = json.dumps(completion(request, does)).encode()
        if does.get("drip"):
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            for start in range(len(body)):
                self.wfile.write(body[start : start + 1])
                self.wfile.flush()
                time.sleep(does["drip"])
            return
        self.reply(does.get("status", 200), does.get("headers", {}), body)

    def reply(self, status, headers, body):
        self.send_response(status)
        for name, value in {"content-length": len(body), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)


def completion(request, does):
    """As OpenAI's endpoints write one; `probs` becomes the likeliest tokens in the first place."""
    text = does["text"]
    top = {token: math.log(p) for token, p in does.get("probs", {}).items()}
    usage = does.get("usage", {"prompt_tokens": 100, "completion_tokens": 2})
    if "messages" in request:
        listed = [{"token": token, "logprob": value} for token, value in top.items()]
        at = {"token": text, "logprob": top.get(text, 0.0), "top_logprobs": listed}
        logprobs = {"content": [at]} if top else None
        choice = {"message": {"role": "assistant", "content": text}, "logprobs": logprobs}
    else:
        logprobs = {"tokens": [text], "top_logprobs": [top]} if top else None
        choice = {"text": text, "logprobs": logprobs}
    choice["finish_reason"] = does.get("finish_reason", "stop")
    return {"choices": [choice], "usage": usage}


def parts(asked):
    """What a question holds between its dividing lines, by title."""
    fence = re.search(r"#\d{6}", asked)[0]
    found, title = {}, None
    for line in asked.splitlines():
        if line.startswith(f"{fence} "):
            title = line.removeprefix(f"{fence} ")
            if title != "end":
                found[title] = []
        elif title in found:
            found[title].append(line)
        if title == "end":
            break
    return {name: "\n".join(lines) for name, lines in found.items()}
