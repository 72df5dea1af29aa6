"""A mistyped run is refused before weights are read, and leaves nothing that the corrected one would stumble over."""

from __future__ import annotations

import json
import re
import sys

import pytest

import wmdp_fast as wf
from tests.support import tiny_models, tokenizers_zoo
from tests.support import unlearning_runs as runs
from wmdp_fast import cli
from wmdp_fast.exceptions import ModelError
from wmdp_fast.models import load
from wmdp_fast.models.decoder import decoder_of
from wmdp_fast.models.partial import first_layers_without_weights
from wmdp_fast.unlearning import preflight, source
from wmdp_fast.unlearning.parameters import ROLES, select_parameters

# What is wrong, and what is said of it. {0} is the folder of the test.
WRONG = [
    (["--parameters", "down_projj"], r"down_projj.*fits no parameter of layer 0.*self_attn"),
    (["--parameters", "down("], "neither a role"),
    (["--layer-id", "9"], "has 4 layers, 0 to 3; layer 9"),
    (["--eval-tasks", "wmdp_boi"], "unknown task.*did you mean wmdp_bio"),
    (["--eval-tasks", "{0}/bird.jsonl"], "no such question file"),
    (["--eval-tasks", "{0}/broken.jsonl"], "broken.jsonl, row 1"),
    (["--eval-tasks", "{0}/birds.jsonl", "--template", "mmluu"], "unknown template"),
    (["--eval-tasks", "{0}/birds.jsonl", "--num-fewshot", "3"], "no few-shot examples"),
    (
        ["--eval-tasks", "{0}/birds.jsonl", "--eval-every", "2", "--stop-when", "bird.acc<0.3"],
        r"speaks of bird\.acc; evaluated are birds\.acc",
    ),
    (
        ["--eval-tasks", "{0}/birds.jsonl", "--eval-every", "2", "--keep-while", "birds.acc_norm>0.3"],
        r"speaks of birds\.acc_norm",
    ),
    (["--eval-tasks", "{0}/birds.jsonl", "--eval-every", "2", "--stop-when", "birds.acc=0.3"], "is no condition"),
    (["--eval-tasks", "{0}/birds.jsonl", "--apply-chat-template"], "the tokenizer has no chat template"),
    (
        ["--eval-tasks", "{0}/birds.jsonl", "--apply-chat-template", "--lm-eval-compat", "0.4.2"],
        "lm-eval 0.4.2 could not apply chat templates",
    ),
    (["--eval-text", "{0}/forget.jsonl", "--num-fewshot", "2"], "num_fewshot: a text is read as it stands"),
    (["--eval-text", "{0}/forget.jsonl", "--apply-chat-template"], "apply_chat_template: a text is read as it stands"),
    (["--grad-accum", "99"], "too few for grad_accum 99"),
    (["--forget", "{0}/forgett.jsonl", "--alpha", "1,1"], "neither a file or folder here nor the name"),
    (["--report-to", "mlflow"], "not one of tensorboard, wandb, trackio"),
    (["--report-to", "trackio"], "pip install trackio"),
    (["--device", "tpu"], "device must be auto, cpu"),
    (["--cache-trunk", "{0}/birds.jsonl"], "is a file, not a folder"),
]

# `sweep` has others of these names, or none.
NOT_OF_SWEEPS = ("--eval-tasks", "--eval-text", "--report-to")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("preflight")
    model = runs.model("llama")
    model.resize_token_embeddings(640)
    model.save_pretrained(made / "base")
    tokenizers_zoo.tokenizer("llama3").save_pretrained(made / "base")
    rows = [{"question": f"What is {i}?", "choices": ["an owl", "a jay"], "answer": i % 2} for i in range(8)]
    (made / "birds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (made / "broken.jsonl").write_text('{"question": "What?", "answer": 0}\n')
    for kind in ("forget", "retain"):
        lines = [json.dumps({"text": f"{kind} text number {i}, which tells of birds."}) for i in range(30)]
        (made / f"{kind}.jsonl").write_text("\n".join(lines))
    return made


def corpora(folder):
    return [word for kind in ("forget", "retain") for word in (f"--{kind}", str(folder / f"{kind}.jsonl"))]


@pytest.fixture
def unread(monkeypatch):
    """Whoever reads weights fails the test."""

    def refuse(*_args, **_options):
        pytest.fail("weights were read")

    monkeypatch.setattr(load, "load_model", refuse)
    monkeypatch.setattr(source, "load_first_layers", refuse)
    monkeypatch.setitem(sys.modules, "trackio", None)


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(("wrong", "says"), WRONG, ids=lambda one: one[0].strip("-") if isinstance(one, list) else "")
def test_a_mistyped_unlearn_is_refused_at_once(folder, tmp_path, capsys, wrong, says):
    command = ["unlearn", str(folder / "base"), *corpora(folder), "--layer-id", "1", "--max-steps", "4"]
    wrong = [word.replace("{0}", str(folder)) for word in wrong]
    assert cli.main([*command, "--output", str(tmp_path / "deep" / "out"), *wrong, "--quiet"]) == 1
    error = capsys.readouterr().err
    [line] = [line for line in error.splitlines() if line.startswith("error: ")]
    assert re.search(says, line)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(
    ("wrong", "says"), [one for one in WRONG if one[0][0] not in ("--eval-tasks", "--eval-text", "--report-to")]
)
def test_a_mistyped_sweep_is_refused_at_once(folder, tmp_path, capsys, wrong, says):
    questions = str(folder / "birds.jsonl")
    command = ["sweep", str(folder / "base"), *corpora(folder), "--layer-id", "1,2", "--max-steps", "4"]
    command += ["--forget-tasks", questions, "--retain-tasks", questions, "--output", str(tmp_path / "out"), "--quiet"]
    wrong = [word.replace("{0}", str(folder)).replace("1,1", "1/1") for word in wrong]
    assert cli.main([*command, *wrong]) == 1
    assert re.search(says, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("unread")
def test_a_sweep_through_a_chat_template_that_is_not_there_is_refused_at_once(folder, tmp_path, capsys):
    questions = str(folder / "birds.jsonl")
    command = ["sweep", str(folder / "base"), *corpora(folder), "--layer-id", "1", "--max-steps", "4"]
    command += ["--forget-tasks", questions, "--retain-tasks", questions, "--output", str(tmp_path / "out"), "--quiet"]
    assert cli.main([*command, "--apply-chat-template"]) == 1
    assert "the tokenizer has no chat template" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("unread")
def test_an_output_that_cannot_be_is_refused_at_once(folder, tmp_path, capsys):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_text("mine")
    questions = str(folder / "birds.jsonl")
    tasks = ["--forget-tasks", questions, "--retain-tasks", questions, "--alpha", "1,2"]
    for output, says in ((tmp_path / "link", "is a link to"), (tmp_path / "file" / "out", "is a file, not a folder")):
        for command, more in (("unlearn", []), ("sweep", tasks)):
            words = [command, str(folder / "base"), *corpora(folder), *more, "--output", str(output), "--layer-id", "1"]
            assert cli.main(words) == 1
            assert says in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_what_fails_before_the_first_result_of_a_sweep_leaves_no_trace(folder, tmp_path, monkeypatch):
    from wmdp_fast.unlearning import evaluations

    def fails(*_args, **_options):
        raise RuntimeError("stop here")

    def swept():
        return wf.sweep(
            folder / "base",
            forget=folder / "forget.jsonl",
            retain=folder / "retain.jsonl",
            over={"max_steps": [1]},
            forget_tasks=str(folder / "birds.jsonl"),
            retain_tasks=str(folder / "birds.jsonl"),
            config=wf.RMUConfig(layer_id=1),
            output=tmp_path / "out",
            progress=False,
        )

    with monkeypatch.context() as patch:
        patch.setattr(evaluations, "measure", fails)
        with pytest.raises(RuntimeError, match="stop here"):
            swept()
    assert list(tmp_path.iterdir()) == []
    assert swept().runs[0].steps == 1


@pytest.mark.parametrize("family", runs.FAMILIES)
def test_without_weights_the_same_parameters_are_found_as_with_them(tmp_path, family):
    first = first_layers_without_weights(str(runs.saved_model(tmp_path, family)), 3)
    whole = decoder_of(runs.model(family))
    assert first.num_layers == 4
    for role in ROLES:
        found = []
        for decoder in (first.decoder, whole):
            try:
                found.append(
                    [(one.name, one.shape) for one in select_parameters(decoder.layers, decoder.prefix, (0, 2), role)]
                )
            except ModelError as error:
                found.append(str(error))
        assert found[0] == found[1]


def test_the_tokenizer_of_a_model_that_cannot_be_built_without_weights_is_found(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(preflight, "first_layers_without_weights", lambda *_, **__: None)
    command = ["unlearn", str(folder / "base"), *corpora(folder), "--layer-id", "1", "--max-steps", "1", "--quiet"]
    assert cli.main([*command, "--output", str(tmp_path / "out")]) == 0, capsys.readouterr().err
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_model_that_cannot_be_cut_off_is_told_so(folder, tmp_path, capsys):
    model = tiny_models.build("gemma3n_text")
    model.save_pretrained(tmp_path / "model")
    tokenizers_zoo.tokenizer("llama3").save_pretrained(tmp_path / "model")
    command = ["unlearn", str(tmp_path / "model"), *corpora(folder), "--max-steps", "1", "--quiet"]
    rmu = ["--layer-id", "0", "--update-layer-ids", "0"]
    assert cli.main([*command, *rmu, "--output", str(tmp_path / "out")]) == 1
    assert "Only the first 1 of 2 layers were to be read" in capsys.readouterr().err
