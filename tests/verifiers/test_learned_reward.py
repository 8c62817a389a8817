import pytest

from verigrad.engine import checkpoint, reward_card
from verigrad.verifiers import services
from verigrad.verifiers.base import Attempt
from verigrad.verifiers.learned_reward import ProcessReward, RewardModel, digest_of
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


# The version ------------------------------------------------------------------------------------------------


def written(run, step):
    def write(folder):
        (folder / "reward.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"weights " * (step + 1))

    return checkpoint.save(run / "checkpoints", step, write, keep=9)


@pytest.mark.parametrize("harm", ["half", "damaged", "tripped", "missing", "shorter", "unlisted", "torn"])
def test_the_version_is_of_the_checkpoint_that_is_loaded(tmp_path, harm):
    good, bad = written(tmp_path, 999_999), written(tmp_path, 1_000_000)
    assert digest_of(str(tmp_path)) == digest_of(str(bad)) != digest_of(str(good))
    weights = bad / "model.safetensors"
    if harm in ("half", "damaged", "tripped"):
        bad.rename(bad.with_name(f"{bad.name}.{harm}"))
    elif harm == "missing":
        weights.unlink()
    elif harm == "shorter":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif harm == "unlisted":
        (bad / "manifest.json").unlink()
    else:
        (bad / "manifest.json").write_text('{"files": {"model.sa')
    assert reward_card.folder_of(tmp_path) == good
    assert digest_of(str(tmp_path)) == digest_of(str(good))


def test_a_run_without_a_whole_checkpoint_has_no_version_yet(tmp_path):
    (written(tmp_path, 2) / "reward.json").unlink()
    assert digest_of(str(tmp_path)) == ""
