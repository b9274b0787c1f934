"""Releases of Ray and transformers that have what distmeta would like to use, and those that do not."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from distmeta import versions


def test_a_local_run_takes_no_fixed_port():
    from ray._private import parameter

    with versions.no_fixed_port():
        params = parameter.RayParams()
        params.update_pre_selected_port()
        assert params.dashboard_agent_listen_port == 0
    assert parameter.RayParams().dashboard_agent_listen_port == 52365


@pytest.mark.parametrize("module", [None, SimpleNamespace(), SimpleNamespace(RayParams=lambda: None)])
def test_a_ray_without_the_parameter_or_the_token_starts_all_the_same(module, monkeypatch):
    import ray

    monkeypatch.setattr("ray._private.parameter", module)
    monkeypatch.setitem(sys.modules, "ray._private.parameter", module)
    monkeypatch.delattr(ray, "_raylet")
    before = getattr(module, "RayParams", None)
    with versions.no_fixed_port():
        versions.read_token_again()
        assert getattr(module, "RayParams", None) is before


@pytest.mark.parametrize(("asked", "workers"), [(None, None), ("1", "uv run --python 3.11.1 python")])
def test_under_uv_run_workers_have_their_node_s_interpreter_unless_ray_s_way_is_asked_for(asked, workers, monkeypatch):
    from ray._private import ray_constants, worker
    from ray._private.runtime_env import uv_runtime_env_hook

    monkeypatch.setattr(uv_runtime_env_hook, "_get_uv_run_cmdline", lambda: ["uv", "run", "distmeta", "train"])
    monkeypatch.setattr(ray_constants, versions.UV_RUN, True)
    monkeypatch.setenv("UV_PYTHON", "3.11.1")
    monkeypatch.setenv(versions.UV_RUN, asked or "")
    if asked is None:
        monkeypatch.delenv(versions.UV_RUN)
    versions.workers_without_uv_run()
    environment = worker._maybe_modify_runtime_env({}, False)
    assert environment.get("py_executable") == workers and ("working_dir" in environment) == (workers is not None)


def test_a_model_s_settings_are_taken_by_a_configuration_that_is_no_dataclass():
    class Base:
        def __init__(self, pad_token_id=None, **more):
            self.pad_token_id = pad_token_id
            vars(self).update(more)

    @versions.model_config
    class Config(Base):
        width: int = 8
        pad_token_id: int | None = 0

    assert vars(Config()) == {"width": 8, "pad_token_id": 0}
    assert vars(Config(width=2, name="x")) == {"width": 2, "pad_token_id": 0, "name": "x"}


@pytest.mark.parametrize(("version", "gathers"), [("0.18.9", [["a"], ["b"]]), ("0.19.8+cpu", [["a", "b"]])])
def test_a_deepspeed_that_waits_for_the_last_of_several_gathers_makes_one_at_a_time(version, gathers, monkeypatch):
    made = []

    class Init:
        def _allgather_params_coalesced(self, parameters, hierarchy=0, quantize=False):
            made.append(parameters)

    module = SimpleNamespace(__version__=version, zero=SimpleNamespace(Init=Init))
    monkeypatch.setitem(sys.modules, "deepspeed", module)
    versions.gather_one_by_one()
    versions.gather_one_by_one()  # for another engine
    Init()._allgather_params_coalesced(["a", "b"], 0, quantize=False)
    assert made == gathers


def test_what_some_releases_have_not_got_is_used_in_one_place():
    root = Path(versions.__file__).parent
    used = re.compile(r"huggingface_hub\.dataclasses|\bPreTrainedConfig\b|from ray\._private|ray\.train\.v2")
    assert [p.name for p in root.rglob("*.py") if used.search(p.read_text())] == ["versions.py"]
