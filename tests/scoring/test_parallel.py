"""One model on several devices, here two processes on the CPU: the numbers of one process, by the same engine."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from transformers.distributed import DistributedConfig

import wmdp_fast as wf
from tests.support import ranks, tiny_models
from wmdp_fast import cli
from wmdp_fast.exceptions import ModelError
from wmdp_fast.models.load import _refuse_cut_heads

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory, llama_dir: Path) -> dict[str, Any]:
    return {"model": llama_dir, **ranks.questions_and_text(tmp_path_factory.mktemp("questions"), 12, 4)}


@pytest.mark.skipif(
    not {"fsdp_size", "tp_plan"} <= inspect.signature(DistributedConfig).parameters.keys(),
    reason="this transformers (5.12 and before) cannot be told how many devices have a model; `load_model` says so",
)
@pytest.mark.parametrize(("parallel", "dtype"), [("fsdp", "bfloat16"), ("fsdp", "float32"), ("tp", "float32")])
def test_two_processes_with_one_model_have_the_scores_of_one(
    options: dict[str, Any], tmp_path: Path, parallel: str, dtype: str
) -> None:
    asked = {**options, "dtype": dtype, "engine": "trie"}
    assert ranks.evaluate(1, tmp_path / "one", **asked) == [0]
    assert ranks.evaluate(2, tmp_path / "two", **asked, parallel=parallel, output=tmp_path / "two") == [0, 0]
    expected, _ = ranks.scores_in(tmp_path / "one")
    for rank in range(2):
        found, resumed = ranks.scores_in(tmp_path / "two", rank)
        assert resumed == 0
        if dtype == "bfloat16":
            np.testing.assert_array_equal(found, expected)
        else:
            np.testing.assert_allclose(found, expected, rtol=2e-5)
    # Of the first rank alone.
    [results] = (tmp_path / "two").rglob("results_*.json")
    details = json.loads(results.read_text(encoding="utf-8"))["wmdp_fast"]
    assert details["parallel"] == {"kind": parallel, "processes": 2}
    assert details["engine"] == "trie"


def test_heads_are_not_cut(options: dict[str, Any]) -> None:
    source = {"trust_remote_code": False}
    _refuse_cut_heads(str(options["model"]), source, 2)
    with pytest.raises(ModelError, match="do not divide by 3 processes"):
        _refuse_cut_heads(str(options["model"]), source, 3)


def test_what_cannot_be_on_several_devices_is_refused(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(says: str, **given: Any) -> None:
        with pytest.raises(ValueError, match=says):
            wf.evaluate(**{**options, "parallel": "fsdp", **given})

    (tmp_path / "delta.safetensors").touch()
    refused("needs a process for each device")
    refused("must be fsdp or tp, not 'pp'", parallel="pp")
    refused("leave shards out", shards=2)
    refused("not both", stream=True)
    refused("`wmdp-fast apply-delta` makes one", model=f"{options['model']}+{tmp_path / 'delta.safetensors'}")
    refused("nothing to resume", resume=True, output=tmp_path)
    server = wf.Server(model="m", protocol="openai", base_url="http://localhost:1/v1")
    refused("loaded here from its folder", model=server)
    refused("loaded here from its folder", model=tiny_models.build("llama"))
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    refused("device cuda:1 is a single one", device="cuda:1")
    with pytest.raises(SystemExit):
        cli.main(["eval", str(options["model"]), "--tasks", str(options["tasks"]), "--parallel", "pp"])
    assert "invalid choice: 'pp'" in capsys.readouterr().err
