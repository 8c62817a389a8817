"""engine/warm_up.py: imports that hide behind other processes' work."""

import threading

import pytest

from tests.tiny import config
from verigrad.engine import warm_up


@pytest.fixture
def imported(monkeypatch):
    names = []
    monkeypatch.setattr(warm_up, "vllm_installed", lambda: True)
    monkeypatch.setattr(
        warm_up.importlib, "import_module", lambda name: names.append((name, threading.current_thread()))
    )
    return names


def test_the_engine_is_imported_beside_the_block_and_is_there_after_it(imported):
    with warm_up.importing_engine(config()):
        pass
    [(name, thread)] = imported
    assert name == "verigrad.engine.rollout_vllm"
    assert thread is not threading.main_thread()
    assert not thread.is_alive()


def test_it_is_there_also_where_the_block_fails(imported):
    with pytest.raises(ZeroDivisionError), warm_up.importing_engine(config()):
        _ = 1 / 0
    assert len(imported) == 1


@pytest.mark.parametrize("rollout", [{"backend": "transformers"}, {"max_staleness": 1}])
def test_nothing_is_imported_that_this_process_does_not_use(imported, rollout):
    with warm_up.importing_engine(config(rollout=rollout)):
        pass
    assert not imported


def test_a_failing_import_is_left_to_whoever_needs_it(monkeypatch):
    monkeypatch.setattr(warm_up, "vllm_installed", lambda: True)

    def fail(name):
        raise ImportError(name)

    monkeypatch.setattr(warm_up.importlib, "import_module", fail)
    with warm_up.importing_engine(config()):
        pass
