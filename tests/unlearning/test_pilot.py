"""`layers` prints a whole command, and with `--pilot` one that does something."""

from __future__ import annotations

import json
import shlex

import pytest
import torch

from tests.support import unlearning_runs as runs
from wmdp_fast import cli, demo
from wmdp_fast.models.load import load_model
from wmdp_fast.unlearning.rmu import pilot
from wmdp_fast.unlearning.rmu.config import RMUConfig


def layers(*more):
    corpora = [word for kind in ("forget", "retain") for word in (f"--{kind}", str(demo.corpus_path(kind)))]
    read = ["--num-documents", "24", "--max-length", "48", "--dtype", "float32", "--min-chars", "3"]
    return ["layers", str(demo.model_path()), *corpora, *read, *more]


def test_without_pilots_it_says_that_nothing_was_tried(capsys):
    assert cli.main(layers()) == 0
    printed = capsys.readouterr().out.splitlines()
    [command] = [line for line in printed if line.startswith("wmdp-fast unlearn")]
    given = vars(cli._parser().parse_args(shlex.split(command)[1:]))
    assert (given["layer_id"], given["update_layer_ids"], given["dtype"]) == (3, (1, 2, 3), "float32")
    assert (given["learning_rate"], given["alpha"], given["max_steps"], given["min_chars"]) == (5e-5, 1200.0, 150, 3)
    assert (given["max_length"], given["retain_max_length"]) == (48, 48)
    assert "were not tried on this model and may do nothing: --pilot tries some" in printed[-1]


def test_the_command_of_a_pilot_does_what_the_pilot_did(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pilot, "LEARNING_RATES", (1e-3,))
    assert cli.main(layers("--pilot", "--json")) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert captured.err.count("pilot: learning rate") == len(found["trials"]) == 2
    last = found["trials"][-1]
    assert (last["learning_rate"], last["alpha"], last["steps"]) == (1e-3, 100.0, 40)
    assert found["command"].endswith("--alpha 100 --learning-rate 0.001 --max-steps 40 --output OUTPUT")
    words = shlex.split(found["command"])
    assert cli.main([*words[1:-1], str(tmp_path / "out"), "--quiet"]) == 0
    assert "unlearned" not in capsys.readouterr().err
    record = json.loads((tmp_path / "out" / "unlearn.json").read_text())
    assert record["verdict"] is None
    [effect] = record["effects"]
    assert effect["forget_cosine"] == pytest.approx(last["effect"]["forget_cosine"], rel=0.05)


def test_pilots_leave_the_model_as_it_was_and_stop_at_divergence(tmp_path):
    from tests.support import tokenizers_zoo

    model = runs.model("llama")
    model.resize_token_embeddings(640)
    model.save_pretrained(tmp_path)
    tokenizers_zoo.tokenizer("llama3").save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), dtype="float32", device="cpu")
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    corpora = [runs.corpus(runs.documents(seed)) for seed in (1, 2)]
    config = RMUConfig(layer_id=2, steering_coeff=1e19, max_steps=2, max_length=20, retain_max_length=20)
    notes: list[str] = []
    [trial] = pilot.pilot(loaded, *corpora, config, note=notes.append)
    assert trial.effect is None
    assert not trial.works
    assert "diverged at step 1" in str(trial)
    assert len(notes) == 1
    assert all(torch.equal(before[name], tensor) for name, tensor in loaded.model.state_dict().items())


def test_where_no_pilot_works_the_command_does_not_pretend(capsys, monkeypatch):
    monkeypatch.setattr(pilot, "LEARNING_RATES", (1e-7,))
    monkeypatch.setattr(pilot, "STEPS", 4)
    assert cli.main(layers("--pilot")) == 0
    assert "No pilot steered forget data" in capsys.readouterr().out.splitlines()[-1]
