"""Methods over logits from the command line: their settings, their sweeps, corpora of prompts and responses."""

from __future__ import annotations

import importlib.util
import json
import shlex

import pytest
import torch
from torch.nn.functional import cross_entropy

import wmdp_fast as wf
from tests.support import tokenizers_zoo
from tests.support import unlearning_runs as runs
from tests.support.expected_warnings import SAME_CORPORA
from wmdp_fast import cli
from wmdp_fast.report.runs import read_run
from wmdp_fast.unlearning.methods.catalog import METHODS, config_class


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder with a tokenizer, corpora and questions."""
    home = tmp_path_factory.mktemp("methods")
    model = runs.model("llama")
    model.resize_token_embeddings(640)
    model.save_pretrained(home / "base")
    tokenizers_zoo.tokenizer("llama3").save_pretrained(home / "base")
    files = {
        "forget": [{"prompt": f"What sings at {n}?", "response": f"A wren sings at {n} or so."} for n in range(9)],
        "retain": [{"text": f"The owl number {n} hoots at night."} for n in range(9)],
        "birds": [{"question": f"What is {n}?", "choices": ["a wren", "an owl"], "answer": n % 2} for n in range(8)],
    }
    for name, records in files.items():
        (home / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    return home


@pytest.fixture
def command(folder, tmp_path):
    def made(name: str, *more: str, output: str = "out") -> list[str]:
        corpora = [word for kind in ("forget", "retain") for word in (f"--{kind}", str(folder / f"{kind}.jsonl"))]
        settings = ["--batch-size", "2", "--learning-rate", "1e-3", "--dtype", "float32", "--quiet"]
        return [name, str(folder / "base"), *corpora, *settings, "--output", str(tmp_path / output), *more]

    return made


def test_the_loss_of_prompts_and_responses_is_that_of_the_responses(command, folder, tmp_path, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    argv = command("unlearn", "--method", "graddiff", "--max-steps", "1", "--retain-weight", "0.5")
    assert cli.main([word for word in argv if word != "--quiet"]) == 0
    assert "forget.jsonl: prompts with responses, of which the responses count in the loss" in capsys.readouterr().err
    record = json.loads((tmp_path / "out" / "unlearn.json").read_text())
    assert (record["method"], record["settings"]["retain_weight"], record["code"]) == ("graddiff", 0.5, [])
    assert [record["corpora"][name][0]["kind"] for name in ("forget", "retain")] == ["answers", "documents"]
    row = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[0])
    model, tokenizer = (auto.from_pretrained(folder / "base") for auto in (AutoModelForCausalLM, AutoTokenizer))
    losses = []
    for n in range(2):
        prompt = tokenizer(f"What sings at {n}?")["input_ids"]
        ids = tokenizer(f"What sings at {n}? A wren sings at {n} or so.")["input_ids"]
        assert ids[: len(prompt)] == prompt
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, len(prompt) - 1 : -1]
        losses.append(float(cross_entropy(logits, torch.tensor(ids[len(prompt) :]))))
    assert row["forget_nll"] == pytest.approx(sum(losses) / 2, rel=1e-4)


def test_a_sweep_over_the_axes_of_a_method(command, folder, tmp_path, capsys):
    tasks = [word for kind in ("forget", "retain") for word in (f"--{kind}-tasks", str(folder / "birds.jsonl"))]
    swept = [*tasks, "--method", "npo", "--beta", "0.02,0.1", "--max-steps", "1", "--schedule", "constant"]
    page = tmp_path / "sweep.html"
    more = ["--html", str(page)] if importlib.util.find_spec("matplotlib") else []
    assert cli.main(command("sweep", *swept, "--json", *more)) == 0
    found = json.loads(capsys.readouterr().out)
    assert [run["settings"]["beta"] for run in found["runs"]] == [0.02, 0.1]
    assert found["swept"] == ["beta", "learning_rate", "max_steps"]
    assert found["runs"][0]["measures"]["forget_nll"] > 0
    if more:
        assert '<p class="soft">npo with 2 settings;' in page.read_text()
    words = shlex.split(found["runs"][0]["command"])
    options = dict(zip(words[3::2], words[4::2], strict=False))
    assert (options["--method"], options["--beta"]) == ("npo", "0.02")
    assert cli.main([*words[1:-1], str(tmp_path / "again"), "--quiet"]) == 0
    settings = json.loads((tmp_path / "again" / "unlearn.json").read_text())["settings"]
    assert settings == {**found["settings"], **found["runs"][0]["settings"], "save_every": settings["save_every"]}
    capsys.readouterr()
    if importlib.util.find_spec("optuna"):
        drawn = [*tasks, "--method", "npo", "--beta", "0.01..1", "--retain-weight", "0.5..2", "--max-steps", "1"]
        assert cli.main(command("sweep", *drawn, "--optuna", "2", "--json", output="drawn")) == 0
        points = [run["settings"] for run in json.loads(capsys.readouterr().out)["runs"]]
        assert len(points) == 2
        assert all(0.01 <= one["beta"] <= 1 and 0.5 <= one["retain_weight"] <= 2 for one in points)


# What a model of four layers needs of methods whose defaults are for larger ones.
SMALLER = {
    "rmu": ["--layer-id", "2"],
    "rr": ["--target-layers", "1,2"],
    "elm": ["--update-layer-ids", "1,2", "--fluency-tokens", "4"],
}


@SAME_CORPORA
@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_run_within_a_budget_and_shown(name, command, folder, tmp_path, capsys):
    retain = ["--forget", str(folder / "retain.jsonl"), "--retain", str(folder / "retain.jsonl")]
    given = [*command("unlearn", "--method", name.replace("_", "-")), "--max-kl", "5"]
    given[2:6] = retain
    if config_class(name).one_shot:
        given = [word for word in given if word not in ("--learning-rate", "1e-3")]
    else:
        given += ["--max-steps", "2"]
    assert cli.main([*given, *SMALLER.get(name, [])]) == 0
    record = json.loads((tmp_path / "out" / "unlearn.json").read_text())
    assert record["method"] == name
    assert record["budget"]["measured"][-1]["step"] == record["steps"]
    assert 0 <= record["budget"]["kl"] <= 5
    assert config_class(name).__name__ in wf.__all__
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert set(record["metrics"]) <= rows[-1].keys()
    assert read_run(tmp_path / "out").plots
    capsys.readouterr()
    assert cli.main(["show", str(tmp_path / "out")]) == 0
    assert f"after {record['best_step']} steps of {name}" in capsys.readouterr().out


def test_a_sweep_within_a_budget_is_of_the_runs_that_unlearn_gives(command, folder, tmp_path, capsys):
    tasks = [word for kind in ("forget", "retain") for word in (f"--{kind}-tasks", str(folder / "birds.jsonl"))]
    settings = ["--method", "graddiff", "--schedule", "constant", "--warmup", "0", "--kl-every", "1"]
    assert cli.main(command("unlearn", *settings, "--max-steps", "3", "--max-kl", "9", output="free")) == 0
    budget = json.loads((tmp_path / "free" / "unlearn.json").read_text())["budget"]
    second, third = (one["kl"] for one in budget["measured"][1:])
    swept = [*settings, *tasks, "--max-steps", "1,3", "--max-kl", str((second + third) / 2)]
    capsys.readouterr()
    assert cli.main(command("sweep", *swept, "--json")) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [(run["steps"], run["kl"]) for run in runs] == [(1, budget["measured"][0]["kl"]), (2, second)]
    assert cli.main([*shlex.split(runs[1]["command"])[1:-1], str(tmp_path / "again"), "--quiet"]) == 0
    record = json.loads((tmp_path / "again" / "unlearn.json").read_text())
    assert (record["best_step"], record["budget"]["kl"]) == (runs[1]["steps"], runs[1]["kl"])
    capsys.readouterr()
    page = tmp_path / "sweep.html"
    more = ["--html", str(page)] if importlib.util.find_spec("matplotlib") else []
    assert cli.main(command("sweep", *swept, "--resume", *more)) == 0
    assert f"  {second:.4f}" in capsys.readouterr().out
    if more:
        assert f"<td>{second:.4f}</td>" in page.read_text()
    assert cli.main(command("sweep", *swept[:-1], "9", "--resume")) == 1
    assert "a sweep with other max_kl" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--method", "npo", "--alpha", "3"], "--alpha is a setting of rmu, and the method is npo, which has --lora, "),
        (["--beta", "3"], "--beta is a setting of npo and simnpo and npo_sam, and the method is rmu, which has "),
        (["--method", "simnpo", "--reduction", "sum"], "reduction of simnpo must be one of sequence_mean, batch_mean"),
        (["--method", "npo", "--preset", "yi-34b"], "there is no preset yi-34b; there are zephyr-7b"),
    ],
)
def test_what_a_method_does_not_have_is_one_line(command, given, message, capsys):
    assert cli.main(command("unlearn", *given)) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line


def test_presets_of_a_method(capsys):
    assert cli.main(["presets", "--method", "npo"]) == 0
    assert "`wmdp-fast unlearn MODEL --method npo --preset NAME` takes them" in capsys.readouterr().out
    assert cli.main(["presets", "--method", "npo", "zephyr-7b"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "--no-master-weights" in printed
    assert "`--preset zephyr-7b` is the same as --method npo --" in printed
    assert cli.main(["presets", "--method", "finetune"]) == 0
    assert capsys.readouterr().out == "finetune has no presets\n"
