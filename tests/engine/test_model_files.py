"""A model that is not there: told from a hub that is not there."""

import huggingface_hub
import pytest

from tests.tiny import write_recipe
from verigrad.engine import config, model_files
from verigrad.engine.config import ConfigError


@pytest.fixture
def fetch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path)

    def run(model):
        cfg = config.load("tiny.toml", [f"policy.model={model}"])
        policy = cfg.policy.model_copy(update={"options": {}})
        return model_files.fetch(cfg.model_copy(update={"policy": policy}))

    return run


@pytest.mark.parametrize("model", ["./nomodel", "/no/model", "~/nomodel"])
def test_a_folder_that_is_not_there(fetch, model):
    with pytest.raises(ConfigError, match=f"policy.model = '{model}': no such folder"):
        fetch(model)


def test_a_hub_that_cannot_be_reached(fetch, monkeypatch):
    def offline(_):
        raise ConnectionError("a page of advice")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(
        ConfigError, match=r"the hub cannot be reached \(ConnectionError\); give a local folder"
    ):
        fetch("org/model")


@pytest.mark.parametrize("size", [100, 3000])
def test_a_fingerprint_sees_a_change_anywhere_in_a_small_file_and_a_spread_one_in_a_large(
    tmp_path, monkeypatch, size
):
    monkeypatch.setattr(model_files, "LOOK_BYTES", 8)
    monkeypatch.setattr(model_files, "NUM_LOOKS", 16)
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(size))
    before = model_files.fingerprint(tmp_path)
    assert model_files.fingerprint(tmp_path) == before
    for change in (slice(size // 2, None), slice(0, size // 2), slice(size - 1, None)):
        content = bytearray(size)
        content[change] = b"x" * len(content[change])
        path.write_bytes(content)
        assert model_files.fingerprint(tmp_path) != before
    path.write_bytes(bytes(size + 1))
    assert model_files.fingerprint(tmp_path) != before
