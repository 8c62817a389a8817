"""The judge that vLLM serves: what is refused, and what lies beside its socket."""

import json
import sys
from pathlib import Path

import pytest

from tests.tiny import model_folder
from verigrad.engine import judge_service
from verigrad.verifiers.judge_base import Question
from verigrad.verifiers.judge_client import Endpoint, JudgeClient
from verigrad.verifiers.service_keeper import Lease, ServiceRefused
from verigrad.verifiers.services import Service


@pytest.mark.vllm
def test_a_model_that_is_not_there_is_the_users_to_mend():
    options = {"model": "/nowhere/x", "model_options": {}, "memory_gb": 0.1}
    with pytest.raises(ServiceRefused, match=r"^model = '/nowhere/x': no such folder[^\n]*$"):
        Lease([Service(judge_service.__name__, options)])


@pytest.mark.vllm
def test_template_and_special_tokens_lie_beside_the_socket(tmp_path):
    options = {"model": model_folder(), "model_options": {}, "memory_gb": 0.1}
    command = judge_service.command_of(str(tmp_path / "socket"), options)
    assert command[0] == sys.executable
    assert command[command.index("--kv-cache-memory-bytes") + 1] == str(int(0.1 * 2**30))
    assert command[command.index("--chat-template") + 1] == str(tmp_path / "plain.jinja")
    assert "<eos>" in json.loads((tmp_path / "special_tokens.json").read_text())


def test_vllm_serve_is_taken_where_its_package_is_told_by_its_name(monkeypatch):
    monkeypatch.setattr(judge_service, "find_distribution", lambda name: True)
    assert judge_service.serving("m") == ["vllm.entrypoints.cli.main", "serve", "m"]
    monkeypatch.setattr(judge_service, "find_distribution", lambda name: False)
    assert judge_service.serving("m") == [judge_service.LAUNCHER, "--model", "m"]


@pytest.mark.slow
@pytest.mark.vllm
def test_it_serves_and_answers_on_its_socket(tmp_path):
    options = {"model": model_folder(), "model_options": {}, "memory_gb": 0.05}
    service = Service(judge_service.__name__, options, ready_s=240.0)
    lease = Lease([service])
    try:
        (address,) = lease.addresses.values()
        with JudgeClient(Endpoint(f"unix://{address}", "judge", timeout_s=60.0, max_tokens=4)) as judge:
            (reply,) = judge.ask([Question("score", "q", choices=("1", "2"))])
        assert reply.error == ""
        assert reply.tokens_in > 0
        assert "command is deprecated" not in Path(address).with_name("log.txt").read_text()
    finally:
        lease.close()
