"""An endpoint that fails in every way it can, and a client that says so in one line, or tries again."""

import time

import pytest

from tests.judge_server import Scripted
from verigrad.verifiers import judge_client, judge_prompts
from verigrad.verifiers.judge_client import Endpoint, JudgeClient

PAIR = judge_prompts.pair("q", "a", "b")
KEY = "sk-a-secret-key"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(judge_client, "FIRST_WAIT_S", 0.01)
    monkeypatch.setenv("JUDGE_KEY", KEY)


def client(server, **settings):
    given = {"model": "m", "api_key_env": "JUDGE_KEY", "timeout_s": 5.0, "retries": 2} | settings
    return JudgeClient(Endpoint(server.url, **given))


def ask(does, *, num=1, **settings):
    """Replies of an endpoint that does so, and the endpoint."""
    answer = does if callable(does) else lambda asked, number: does
    with Scripted(answer) as server, client(server, **settings) as judge:
        return judge.ask([PAIR] * num), server


def test_chat_is_asked_with_the_whole_question_and_the_key():
    (reply,), server = ask({"text": "1", "probs": {"1": 0.8, " 1": 0.05, "2": 0.1, "x": 0.05}})
    assert (reply.text, reply.error, reply.tokens_in, reply.tokens_out) == ("1", "", 100, 2)
    assert reply.probs == pytest.approx({"1": 0.85, "2": 0.1})
    (request,) = server.requests
    assert request["messages"] == [{"role": "user", "content": PAIR.text}]
    assert (request["model"], request["temperature"], request["top_logprobs"]) == ("m", 0.0, 20)
    assert server.seen_headers[0]["authorization"] == f"Bearer {KEY}"


def test_plain_completions_end_where_the_reply_begins():
    (reply,), server = ask({"text": " 2", "probs": {" 2": 0.7, " 1": 0.2}}, api="completions")
    assert reply.probs == pytest.approx({"2": 0.7, "1": 0.2})
    assert server.requests[0]["prompt"] == f"{PAIR.text}\nReply:"


def test_without_a_key_or_probabilities_it_works_too(monkeypatch):
    monkeypatch.delenv("JUDGE_KEY")
    (reply,), server = ask("2", logprobs=False)
    assert (reply.text, reply.probs) == ("2", None)
    assert "authorization" not in server.seen_headers[0]
    assert "logprobs" not in server.requests[0]


@pytest.mark.parametrize(
    "trouble",
    [
        {"status": 429, "body": b"slow down"},
        {"status": 429, "headers": {"retry-after": "0.02"}, "body": b""},
        {"status": 500, "body": b"<html>oops"},
        {"status": 503, "body": b'{"error": {"message": "loading"}}'},
        {"cut": True},
        {"body": b"garbage {"},
        {"body": b"[" * 100_000},
        {"body": b'{"choices": []}'},
        {"body": b'{"choices": [{"message": {"content": null}}]}'},
        {"body": b'{"choices": [{"message": null}]}'},
        {"body": b"[]"},
        {"body": b"null"},
        {"headers": {"content-length": "1000"}, "body": b"{"},
        {"headers": {"content-encoding": "gzip"}, "body": b"no gzip"},
    ],
    ids=range(14),
)
def test_what_may_pass_is_tried_again_and_then_told_in_one_line(trouble):
    def once(asked, number):
        return trouble if number == 0 else "1"

    settings = {"timeout_s": 1.0} if "1000" in str(trouble) else {}
    (reply,), server = ask(once, **settings)
    assert (reply.text, len(server.requests)) == ("1", 2)
    (reply,), server = ask(trouble, **settings, retries=1)
    assert reply.text is None
    assert not reply.fatal
    assert reply.error.endswith("after 2 tries")
    assert "\n" not in reply.error
    assert len(server.requests) == 2


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_question_that_is_refused_is_not_asked_again(status):
    body = b'{"error": {"message": "too long"}}'
    (reply,), server = ask({"status": status, "body": body})
    assert f"status {status}: too long" in reply.error
    assert len(server.requests) == 1
    assert not reply.fatal


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_no_question_will_mend_stops_the_others(status):
    body = f'{{"error": {{"message": "wrong key {KEY}"}}}}'.encode()
    replies, server = ask({"status": status, "body": body}, num=20, concurrency=1)
    assert len(server.requests) == 1
    assert all(reply.fatal for reply in replies)
    assert all(KEY not in reply.error for reply in replies)
    assert "***" in replies[0].error


def test_an_endpoint_that_hangs_or_drips_is_late():
    for does in ({"text": "1", "sleep": 3}, {"text": "1", "drip": 0.02}):
        started = time.monotonic()
        (reply,), _ = ask(does, timeout_s=0.4, retries=0)
        assert "no answer within 0.4 s" in reply.error
        assert time.monotonic() - started < 2.5


def test_nobody_there_is_told():
    with Scripted(lambda *_: "1") as server:
        pass
    with client(server, retries=1) as judge:
        (reply,) = judge.ask([PAIR])
    assert "cannot be reached" in reply.error
    assert "after 2 tries" in reply.error


def test_retry_after_is_honoured_and_a_long_one_is_not_waited_for():
    def busy(asked, number):
        return {"status": 429, "headers": {"retry-after": "0.4"}, "body": b""} if number == 0 else "1"

    started = time.monotonic()
    (reply,), _ = ask(busy)
    assert reply.text == "1"
    assert time.monotonic() - started >= 0.4
    (reply,), server = ask({"status": 429, "headers": {"retry-after": "86400"}, "body": b"tomorrow"})
    assert "tomorrow" in reply.error
    assert len(server.requests) == 1


def test_a_deadline_ends_the_trying():
    with Scripted(lambda *_: {"status": 503, "body": b""}) as server, client(server, retries=1000) as judge:
        started = time.monotonic()
        reply = judge.ask_one(PAIR, deadline=started + 0.5)
    assert reply.text is None
    assert time.monotonic() - started < 1.5


def test_an_interrupt_waits_for_no_request():
    def stops(position, reply):
        raise KeyboardInterrupt

    def hangs(asked, number):
        return {"text": "1", "sleep": 0 if number == 1 else 20}

    with Scripted(hangs) as server, client(server, concurrency=4, timeout_s=30.0) as judge:
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            judge.ask([PAIR] * 8, on_reply=stops)
        judge.close()
    assert time.monotonic() - started < 5


def test_requests_run_side_by_side_up_to_the_limit_in_the_order_asked():
    def slow(asked, number):
        return {"text": asked.split("request\n")[1].split("\n")[0], "sleep": 0.05}

    questions = [judge_prompts.critique(f"{n}", "a") for n in range(12)]
    seen = []
    with Scripted(slow) as server, client(server, concurrency=4) as judge:
        replies = judge.ask(questions, on_reply=lambda position, reply: seen.append(position))
    assert [reply.text for reply in replies] == [str(n) for n in range(12)]
    assert sorted(seen) == list(range(12))
    assert 2 <= server.most_running <= 4


def test_the_rate_limit_holds():
    started = time.monotonic()
    replies, _ = ask("1", num=5, requests_per_minute=600)
    assert all(reply.text == "1" for reply in replies)
    assert time.monotonic() - started >= 0.4  # four waits of a tenth of a second


def test_costs_are_counted_and_limited():
    priced = {"price_in": 10.0, "price_out": 20.0, "max_cost": 0.003, "concurrency": 1}
    replies, server = ask("1", num=6, **priced)
    assert replies[0].cost == pytest.approx((100 * 10 + 2 * 20) / 1e6)
    assert [reply.text for reply in replies] == ["1", "1", "1", None, None, None]
    assert replies[3].fatal
    assert "judge.max_cost = 0.003" in replies[3].error
    assert len(server.requests) == 3


def test_a_unix_socket_is_an_address(tmp_path):
    with Scripted(lambda *_: "2", uds=tmp_path / "s") as server, client(server) as judge:
        assert judge.ask_one(PAIR).text == "2"


@pytest.mark.parametrize(
    ("tops", "probs"),
    [
        ({"1": 0.5, "10": 0.3, "7": 0.1}, {"1": 0.5, "10": 0.3, "7": 0.1}),
        ({"1": 0.5, "7": 0.4}, None),  # a tokenizer that writes 10 as 1 and 0: 1 may be either
        ({"7": 0.9, "8": 0.05}, {"7": 0.9, "8": 0.05}),
    ],
)
def test_one_that_may_be_ten_gives_no_probabilities(tops, probs):
    question = judge_prompts.score("q", "a")
    first = next(iter(tops))
    with Scripted(lambda *_: {"text": first, "probs": tops}) as server, client(server) as judge:
        told = judge.ask_one(question).probs
    assert told is None if probs is None else {k: v for k, v in told.items() if v} == pytest.approx(probs)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("localhost:8000", "expected http://HOST/v1"),
        ("ftp://x/v1", "expected http://HOST/v1"),
        ("http://user:secret@host/v1", "holds a user name or password"),
        ("", "expected http://HOST/v1"),
    ],
)
def test_an_address_that_cannot_be_is_refused_without_its_secrets(url, says):
    with pytest.raises(ValueError, match=says) as caught:
        Endpoint(url, "m")
    assert "secret" not in str(caught.value)
    with pytest.raises(ValueError, match="needs the model's name"):
        Endpoint("http://x/v1", "")


def test_the_record_of_who_judged_has_no_key():
    with JudgeClient(Endpoint("http://host/v1?key=abc", "m", api_key_env="JUDGE_KEY")) as judge:
        assert "abc" not in str(judge.identity)
        assert KEY not in str(judge.identity)


def test_a_query_of_the_address_is_sent_as_one_and_told_to_nobody():
    with Scripted(lambda *_: "1") as server:
        place = Endpoint(f"{server.url}?version=secret", "m", api_key_env="")
        with JudgeClient(place) as judge:
            assert judge.ask_one(PAIR).text == "1"
            url = judge._client.build_request("POST", "chat/completions").url
    assert url.path == "/v1/chat/completions"
    assert dict(url.params) == {"version": "secret"}


def test_a_key_is_in_no_message_however_it_is_echoed(monkeypatch):
    says = f'{{"error": {{"message": "{"so long a story " * 11}key {KEY} is wrong"}}}}'.encode()
    (reply,), _ = ask({"status": 401, "body": says})
    assert "***" in reply.error or "..." in reply.error
    assert "sk-" not in reply.error
    monkeypatch.setenv("JUDGE_KEY", f" {KEY}\r\n")
    (reply,), server = ask("1")
    assert reply.text == "1"
    assert server.seen_headers[0]["authorization"] == f"Bearer {KEY}"
    for wrong in ("sk-a\nsecret", "sk-\xe9-secret", "sk-a secret"):
        monkeypatch.setenv("JUDGE_KEY", wrong)
        with pytest.raises(ValueError, match=r"^\$JUDGE_KEY holds [^\n]*$") as caught:
            Endpoint("http://host/v1", "m", api_key_env="JUDGE_KEY")
        assert "secret" not in str(caught.value)


def test_a_text_cut_off_is_no_reply_and_is_paid_for_and_not_asked_again():
    cut = {"text": "The better ans", "finish_reason": "length"}
    question = judge_prompts.revision("q", "a", "too short")
    with Scripted(lambda *_: cut) as server, client(server, price_in=10.0, price_out=20.0) as judge:
        reply = judge.ask_one(question)
        assert judge.ask_one(PAIR).text == "The better ans"  # read, or not, as a judgement
    assert (reply.text, reply.tokens_in, reply.tokens_out) == (None, 100, 2)
    assert "cut off at max_tokens = 256" in reply.error
    assert reply.cost == pytest.approx(1040 / 1e6)
    assert len(server.requests) == 2


def test_answers_of_no_use_count_towards_the_costs():
    useless = b'{"choices": [{"message": {"content": 7}}], "usage": {"prompt_tokens": 100}}'
    does = lambda _, number: {"body": useless} if number < 2 else "1"  # noqa: E731
    with Scripted(does) as server, client(server, price_in=10.0) as judge:
        reply = judge.ask_one(PAIR)
        assert (reply.text, reply.tokens_in) == ("1", 300)
        assert reply.cost == judge.spent == pytest.approx(3000 / 1e6)
    with Scripted(lambda *_: {"body": useless}) as server, client(server, price_in=10.0) as judge:
        reply = judge.ask_one(PAIR)
        assert (reply.text, reply.cost) == (None, pytest.approx(3000 / 1e6))
    with Scripted(lambda *_: {"text": "ab\ud800"}) as server, client(server) as judge:
        assert judge.ask_one(PAIR).text == "ab?"
