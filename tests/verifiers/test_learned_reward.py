import pytest

from verigrad.verifiers import services
from verigrad.verifiers.base import Attempt
from verigrad.verifiers.learned_reward import ProcessReward, RewardModel
from verigrad.verifiers.services import ServiceLost

PROMPT, ATTEMPT = "How are you?", Attempt("Well.")
BOTH = pytest.mark.parametrize("kind", [RewardModel, ProcessReward])


@BOTH
def test_without_its_process_nothing_is_decided(kind):
    verdict = kind(model="somewhere").verify(PROMPT, ATTEMPT)
    assert (verdict.reward, verdict.outcome) == (None, "error")
    assert "is not running" in verdict.reason


@BOTH
def test_a_process_that_is_lost_decides_nothing(kind, monkeypatch):
    def lost(*args, **kwargs):
        raise ServiceLost("it died while it was asked")

    monkeypatch.setattr(services, "ask", lost)  # a real one that dies: tests/engine/test_reward_service.py
    verdict = kind(model="somewhere").verify(PROMPT, ATTEMPT)
    assert (verdict.reward, verdict.reason) == (None, "it died while it was asked")


@BOTH
def test_a_model_that_failed_decides_nothing(kind, monkeypatch):
    monkeypatch.setattr(services, "ask", lambda *a, **k: {"scores": [{"error": "out of memory"}]})
    verdict = kind(model="somewhere").verify(PROMPT, ATTEMPT)
    assert verdict.reward is None
    assert "out of memory" in verdict.reason


@BOTH
def test_an_answer_that_cannot_be_read_is_the_attempts_own_fault(kind, monkeypatch):
    monkeypatch.setattr(services, "ask", lambda *a, **k: {"scores": [{"unreadable": "has no text"}]})
    verdict = kind(model="somewhere").verify(PROMPT, ATTEMPT)
    assert verdict.outcome == "unparseable"
    assert verdict.reward <= 0
