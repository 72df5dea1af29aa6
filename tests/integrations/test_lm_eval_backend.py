"""lm-eval with `--model wmdp-fast` against `--model hf`, both live: the same numbers on every kind of task."""

from __future__ import annotations

import json
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'wmdp-fast[lm-eval]'")

import datasets
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import manager

import wmdp_fast
from tests.support import lm_eval_tasks, tiny_models, tokenizers_zoo
from tests.support.thorough import cases
from wmdp_fast import cli, demo
from wmdp_fast.bench.lm_eval_baseline import quiet_lm_eval, task_configs
from wmdp_fast.exceptions import WmdpFastWarning
from wmdp_fast.integrations.lm_eval import FastHFLM
from wmdp_fast.tasks.resolve import resolve

pytestmark = pytest.mark.timeout(900)

# The bound the project promises for a continuation's log-likelihood in float32, in nats.
TOLERANCE = 1e-4


def evaluate(model: HFLM, tasks: list[Any], **options: Any) -> dict[str, Any]:
    with quiet_lm_eval() as lm_eval:
        from lm_eval.tasks import TaskManager

        found: dict[str, Any] = lm_eval.simple_evaluate(
            model=model,
            tasks=[json.loads(json.dumps(task)) for task in tasks],
            task_manager=TaskManager(include_defaults=False),
            log_samples=True,
            bootstrap_iters=100,
            **options,
        )
    return found


def answers(found: dict[str, Any]) -> dict[str, list[Any]]:
    """Responses by task, in the order of the documents."""
    samples = {name: sorted(lines, key=lambda line: line["doc_id"]) for name, lines in found["samples"].items()}
    return {name: [line["resps"] for line in lines] for name, lines in samples.items()}


@pytest.fixture(autouse=True)
def no_environment_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out what lm-eval adds to results about the machine: it runs pip, which takes seconds."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda _: None)


def check_same(ours: dict[str, Any], theirs: dict[str, Any], tolerance: float = TOLERANCE) -> None:
    assert ours["results"].keys() == theirs["results"].keys()
    ours_answers, theirs_answers = answers(ours), answers(theirs)
    for name, expected in theirs_answers.items():
        found = ours_answers[name]
        if theirs["configs"][name]["output_type"] == "generate_until":
            assert found == expected
            continue
        values = np.array(expected, dtype=float)
        # A sum over many tokens, a whole document's for one, is rounded as its size wants it.
        np.testing.assert_allclose(np.array(found, dtype=float), values, rtol=1e-6, atol=tolerance)
        for metric, value in theirs["results"][name].items():
            if isinstance(value, float) and not math.isnan(value):
                assert ours["results"][name][metric] == pytest.approx(value, rel=1e-5), metric


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return lm_eval_tasks.configs(lm_eval_tasks.write(tmp_path_factory.mktemp("tasks")))


def demo_models(**options: Any) -> tuple[FastHFLM, HFLM]:
    options = {"pretrained": str(demo.model_path()), "dtype": "float32", "device": "cpu", "batch_size": 4, **options}
    return FastHFLM(**options), HFLM(**options)


def strictly(call: Any, *args: Any, **kwargs: Any) -> Any:
    """Calls with our warnings as errors: nothing has fallen back."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", WmdpFastWarning)
        return call(*args, **kwargs)


def test_it_is_registered_under_its_name() -> None:
    assert get_model("wmdp-fast") is FastHFLM


def test_every_kind_of_task_gives_hfs_numbers(tasks: dict[str, dict[str, Any]]) -> None:
    ours, theirs = demo_models()
    chosen = [*tasks.values()]
    check_same(strictly(evaluate, ours, chosen), evaluate(theirs, chosen))


def test_few_shot_examples_give_hfs_numbers(tasks: dict[str, dict[str, Any]]) -> None:
    ours, theirs = demo_models()
    chosen = [task | {"fewshot_split": "test"} for task in (tasks["story"], tasks["quiz"])]
    check_same(strictly(evaluate, ours, chosen, num_fewshot=2), evaluate(theirs, chosen, num_fewshot=2))


def test_windows_of_long_texts_give_hfs_numbers(tasks: dict[str, dict[str, Any]]) -> None:
    ours, theirs = demo_models(max_length=64)
    chosen = [tasks["page"], tasks["story"]]
    check_same(strictly(evaluate, ours, chosen), evaluate(theirs, chosen))


@pytest.mark.parametrize("options", [{"softmax_dtype": "float32"}, {"logits_cache": False}, {"max_length": 50}])
def test_options_of_hf_mean_what_they_mean_there(tasks: dict[str, dict[str, Any]], options: dict[str, Any]) -> None:
    ours, theirs = demo_models(**options)
    check_same(strictly(evaluate, ours, [tasks["story"]]), evaluate(theirs, [tasks["story"]]))


def test_in_bfloat16_the_sums_are_rounded_as_hf_rounds_them(tasks: dict[str, dict[str, Any]]) -> None:
    ours, theirs = demo_models(dtype="bfloat16")
    found = strictly(evaluate, ours, [tasks["quiz"]])
    values = np.array(answers(found)["quiz"], dtype=float)[..., 0]
    expected = np.array(answers(evaluate(theirs, [tasks["quiz"]]))["quiz"], dtype=float)[..., 0]
    np.testing.assert_allclose(values, expected, rtol=0.02)
    np.testing.assert_array_equal(values, torch.from_numpy(values).bfloat16().double().numpy())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"mixed_precision_dtype": "bfloat16"}, "mixed_precision_dtype"),
        ({"softmax_dtype": "bfloat16"}, "softmax_dtype"),
    ],
)
def test_where_hfs_own_way_is_taken_it_says_so(
    tasks: dict[str, dict[str, Any]], options: dict[str, Any], reason: str
) -> None:
    with pytest.warns(WmdpFastWarning, match=f"lm-eval's own code: {reason}"):
        ours, theirs = demo_models(**options)
    chosen = [tasks["quiz"], tasks["page"]]
    check_same(evaluate(ours, chosen), evaluate(theirs, chosen), tolerance=1e-9)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "mistral", "mamba"])
@pytest.mark.filterwarnings("ignore:.*padded rows:wmdp_fast.exceptions.WmdpFastWarning")
def test_a_model_in_memory(tasks: dict[str, dict[str, Any]], family: str) -> None:
    model, tokenizer = tiny_models.build(family), tokenizers_zoo.tokenizer("llama3")
    options = {"pretrained": model, "tokenizer": tokenizer, "batch_size": 4, "max_length": 128}
    chosen = [tasks["story"], tasks["page"]]
    check_same(evaluate(FastHFLM(**options), chosen), evaluate(HFLM(**options), chosen))


def test_an_adapter_of_hf_is_on_it(tasks: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="the package peft is missing")
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(demo.model_path(), dtype=torch.float32)
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path)
    ours, theirs = demo_models(peft=str(tmp_path))
    found = strictly(evaluate, ours, [tasks["quiz"]])
    check_same(found, evaluate(theirs, [tasks["quiz"]]))
    without = evaluate(demo_models()[0], [tasks["quiz"]])
    assert answers(found) != answers(without)


def test_chat_templates_and_system_instructions(tasks: dict[str, dict[str, Any]]) -> None:
    template = "{% for m in messages %}<{{ m['role'] }}>\n{{ m['content'] }}\n{% endfor %}<assistant>\n"
    models = demo_models()
    for model in models:
        model.tokenizer.chat_template = template
    options = {"apply_chat_template": True, "system_instruction": "You know birds."}
    chosen = [tasks["story"], tasks["say"]]
    ours, theirs = (evaluate(model, chosen, **options) for model in models)
    check_same(ours, theirs)


TEXT = st.sampled_from(["", " ", "\n", "<s>", "</s>", "a", "the wren", " the jay\n", "日本", "é", "12345", "Answer:"])


@pytest.mark.parametrize("kind", ["gpt2", "llama2", "llama3", "bos_and_eos"])
@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.lists(TEXT, max_size=4), TEXT), min_size=1, max_size=6), st.sampled_from([None, False]))
@example([([], " "), ([], "<s>")], None)
@example([([], " the jay\n"), ([" the jay\n"], "")], None)
def test_any_requests_get_hfs_answers_or_an_error_where_hf_has_one(
    kind: str, texts: list[tuple[list[str], str]], add_bos_token: bool | None
) -> None:
    tokenizer = tokenizers_zoo.tokenizer(kind)
    options = {
        "pretrained": tiny_models.loaded("llama").model,
        "tokenizer": tokenizer,
        "add_bos_token": add_bos_token,
        "batch_size": 3,
    }
    asked = [
        Instance("loglikelihood", {}, ("".join(parts), continuation), number, metadata=("birds", number, 1))
        for number, (parts, continuation) in enumerate(texts)
    ]
    theirs = HFLM(**options)
    try:
        # One at a time: hf answers requests of which all tokens but the last are the same from one row of logits. That
        # lets a continuation without tokens pass, and reads the wrong place where contexts are not equally long.
        expected = [theirs.loglikelihood([request], disable_tqdm=True)[0] for request in asked]
    except (AssertionError, IndexError):
        with pytest.raises((AssertionError, IndexError, ValueError)):
            FastHFLM(**options).loglikelihood(asked, disable_tqdm=True)
        return
    found = FastHFLM(**options).loglikelihood(asked, disable_tqdm=True)
    np.testing.assert_allclose([value for value, _ in found], [value for value, _ in expected], atol=TOLERANCE)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_a_tokenizer_with_ways_of_its_own_is_used_as_it_is(tasks: dict[str, dict[str, Any]]) -> None:
    class Lower(FastHFLM):
        def tok_encode(self, string: str, *args: Any, **kwargs: Any) -> list[int]:
            return super().tok_encode(string.lower(), *args, **kwargs)

    ours = Lower(pretrained=str(demo.model_path()), dtype="float32", device="cpu")
    with pytest.warns(WmdpFastWarning, match="tokenized by lm-eval's own code: Lower has a `tok_encode`"):
        found = answers(evaluate(ours, [tasks["story"]]))
    assert found != answers(evaluate(demo_models()[0], [tasks["story"]]))


def test_tokens_that_differ_are_noticed(tasks: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = demo_models()
    other = tokenizers_zoo.tokenizer("llama3")
    monkeypatch.setattr(
        "wmdp_fast.integrations.lm_eval.load_tokenizer",
        lambda _, **options: wmdp_fast.load_tokenizer(other, **options),
    )
    with pytest.warns(WmdpFastWarning, match="the Rust tokenizer makes other tokens of"):
        found = evaluate(ours, [tasks["quiz"]])
    check_same(found, evaluate(theirs, [tasks["quiz"]]))


def requests_of(task: list[tuple[str, str]]) -> list[Instance]:
    return [
        Instance("loglikelihood", {}, pair, number, metadata=("birds", number, 1)) for number, pair in enumerate(task)
    ]


def test_the_cache_gets_each_answer_and_a_second_run_asks_nothing(tmp_path: Path) -> None:
    ours, theirs = demo_models()
    pairs = [(f"The {bird}", ending) for bird in ("wren", "jay", "owl") for ending in (" sings", " hides its eggs")]
    pages = [Instance("loglikelihood_rolling", {}, ("The owl. " * 9,), 0, metadata=("page", 0, 1))]
    cached = CachingLM(ours, str(tmp_path / "cache.db"))
    first = cached.loglikelihood(requests_of(pairs))
    whole = cached.loglikelihood_rolling(pages)
    np.testing.assert_allclose(
        np.array(first, dtype=float), np.array(theirs.loglikelihood(requests_of(pairs)), dtype=float), atol=TOLERANCE
    )
    reopened = CachingLM(ours, str(tmp_path / "cache.db"))

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a cached request was asked again")

    ours.loglikelihood = ours.loglikelihood_rolling = refuse
    assert reopened.loglikelihood(requests_of(pairs)) == first
    assert reopened.loglikelihood_rolling(pages) == whole


def test_answers_are_cached_batch_by_batch() -> None:
    ours = FastHFLM(str(demo.model_path()), device="cpu", token_budget=8)
    kept: list[tuple[str, str]] = []
    kept_before_each_pass: list[int] = []

    class Hook:
        def add_partial(self, _: str, name: tuple[str, str], __: Any) -> None:
            kept.append(name)

    ours.set_cache_hook(Hook())
    ours.model.register_forward_pre_hook(lambda *_: kept_before_each_pass.append(len(kept)))
    pairs = [(f"{bird} {bird} {bird}", " sings") for bird in ("The wren", "A jay", "One owl", "Some heron")]
    ours.loglikelihood(requests_of(pairs), disable_tqdm=True)
    assert 0 < kept_before_each_pass[-1] < len(kept)
    assert sorted(kept) == sorted(pairs)


def test_no_progress_is_shown_if_none_is_wanted(capfd: pytest.CaptureFixture[str]) -> None:
    ours, _ = demo_models()
    capfd.readouterr()
    ours.loglikelihood(requests_of([("The owl", " sings")]), disable_tqdm=True)
    assert "requests" not in capfd.readouterr().err
    ours.loglikelihood(requests_of([("The owl", " sings")]))
    assert "Running loglikelihood requests" in capfd.readouterr().err


def test_nothing_asked_is_nothing_answered() -> None:
    ours, _ = demo_models()
    assert ours.loglikelihood([]) == []
    assert ours.loglikelihood_rolling([]) == []


@pytest.mark.parametrize("options", [{"engine": "fast"}, {"token_budget": "many"}, {"token_budget": 0}])
def test_impossible_options_are_refused_before_anything_is_loaded(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        FastHFLM("no-such-model", **options)


@pytest.fixture(scope="module")
def virology(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a made-up dataset of a task that lm-eval reads from the hub."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "virology").mkdir()
    for split, count in (("test", 8), ("dev", 5)):
        asked = [f"Which owl is number {n} of {split}?" for n in range(count)]
        shared = {"subject": "virology", "choices": list("wxyz")}
        rows = [{"question": question, **shared, "answer": n % 4} for n, question in enumerate(asked)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "virology" / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def command_line(
    tasks: dict[str, dict[str, Any]], virology: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What lm-eval's own command line saves of made-up tasks and, with examples, of one of its own; with samples."""
    folder = tmp_path_factory.mktemp("command line")
    (folder / "tasks").mkdir()
    for name in ("story", "page"):
        own = tasks[name] | {"task": f"made_up_{name}", "num_fewshot": 0}
        (folder / "tasks" / f"{name}.yaml").write_text(json.dumps(own))
    argv = [
        *("lm-eval", "run", "--model", "wmdp-fast", "--device", "cpu"),
        *("--model_args", f"pretrained={demo.model_path()},dtype=float32", "--batch_size", "4", "--log_samples"),
        *("--tasks", "made_up_story,made_up_page,mmlu_virology", "--num_fewshot", "2", "--data", str(virology)),
        *("--include_path", str(folder / "tasks"), "--output_path", str(folder / "results.json")),
    ]
    # Here, where all is imported already. What the command exchanges is put back, and lm-eval runs no pip (see above).
    with pytest.MonkeyPatch.context() as patch, quiet_lm_eval():
        patch.setattr("lm_eval.evaluator.add_env_info", lambda _: None)
        patch.setattr("datasets.load_dataset", datasets.load_dataset)
        patch.setattr("sys.argv", sys.argv)
        # Of lm-eval's own 14,000 files of tasks only these are read.
        patch.setattr(manager, "__file__", str(Path(manager.__file__).parent / "mmlu" / "default" / "none.py"))
        assert cli.main(argv) == 0
    [written] = folder.glob("results_*.json")
    found: dict[str, Any] = json.loads(written.read_text())
    found["samples"] = {
        path.name.removeprefix("samples_").rpartition("_")[0]: [
            json.loads(line) for line in path.read_text().splitlines()
        ]
        for path in folder.glob("samples_*.jsonl")
    }
    return found


@pytest.mark.slow
def test_lm_evals_own_command_line(command_line: dict[str, Any], tasks: dict[str, dict[str, Any]]) -> None:
    assert command_line["config"]["model"] == "wmdp-fast"
    chosen = [tasks[name] | {"task": f"made_up_{name}"} for name in ("story", "page")]
    theirs = evaluate(demo_models()[1], chosen)
    for task, metrics in theirs["results"].items():
        assert command_line["results"][task].keys() == metrics.keys()
        for metric, value in metrics.items():
            # A perplexity's error is drawn anew by each run.
            if isinstance(value, float) and not metric.endswith("_stderr,none"):
                assert command_line["results"][task][metric] == pytest.approx(value, rel=1e-5), metric


@pytest.mark.slow
def test_its_command_line_reads_the_datasets_of_a_folder(command_line: dict[str, Any], virology: Path) -> None:
    rows = sorted(command_line["samples"]["mmlu_virology"], key=lambda row: row["doc_id"])
    found = [float(answer[0]) for row in rows for answer in row["filtered_resps"]]
    options: dict[str, Any] = {"dtype": "float32", "device": "cpu", "progress": False}
    ours = wmdp_fast.evaluate(demo.model_path(), tasks="mmlu_virology", data=virology, num_fewshot=2, **options)
    assert len(found) == 32
    assert found == pytest.approx(ours["mmlu_virology"].outcome.loglikelihood.tolist(), abs=1e-5)
    assert "Which owl is number 1 of dev?" in rows[0]["arguments"]["gen_args_0"]["arg_0"]


@pytest.mark.slow
@pytest.mark.parametrize(("shots", "limit"), [(0, cases(4, 8)), (5, cases(1, 3))])
def test_smollm2_on_mmlu(real_weights: Path, mmlu_dir: Path, shots: int, limit: int) -> None:
    selection = resolve("mmlu_astronomy,mmlu_virology", num_fewshot=shots)
    options = {"pretrained": str(real_weights), "dtype": "float32", "device": "cpu", "batch_size": 4}
    configs = task_configs(selection.tasks, mmlu_dir)
    asked = {"num_fewshot": shots, "limit": limit}
    check_same(strictly(evaluate, FastHFLM(**options), configs, **asked), evaluate(HFLM(**options), configs, **asked))


@pytest.mark.slow
def test_smollm2_on_texts_and_documents(real_weights: Path, tasks: dict[str, dict[str, Any]]) -> None:
    options = {"pretrained": str(real_weights), "dtype": "float32", "device": "cpu", "batch_size": 4, "max_length": 512}
    chosen, limit = [tasks["story"], tasks["quiz"], tasks["page"]], cases(2, 4)
    check_same(
        strictly(evaluate, FastHFLM(**options), chosen, limit=limit), evaluate(HFLM(**options), chosen, limit=limit)
    )
