"""Prompts that are shown are those that are scored: the same texts, the same tokens, from the tokenizer alone."""

import copy
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import wmdp_fast as wf
from tests.support import tiny_models, tokenizers_zoo
from tests.support.expected_warnings import CUT_PROMPTS, printed
from wmdp_fast import cli
from wmdp_fast.scoring.local import LocalModel

CHAT = (
    "{{ bos_token }}{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
COUNT = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model whose tokenizer adds BOS and has a chat template."""
    folder = tmp_path_factory.mktemp("model")
    tiny_models.build("llama").save_pretrained(folder)
    tokenizer = copy.deepcopy(tiny_models.tokenizer())
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bare(model, tmp_path_factory):
    """The same folder without weights."""
    folder = tmp_path_factory.mktemp("bare")
    for file in model.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, folder)
    assert (folder / "config.json").is_file()
    assert (folder / "tokenizer.json").is_file()
    return folder


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("questions")
    for name, count in (("birds", 5), ("birds_dev", 3), ("fish", 2), ("fish_dev", 2)):
        rows = [
            {
                "question": f" What {'bird ' * i}is {name} {i}? 鳥\t",
                "choices": ["wren", "an oak", "carp", "mint"][: 4 if name != "fish" else 3],
                "answer": i % 3,
            }
            for i in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(folder / "birds.jsonl"), str(folder / "fish.jsonl")]


WAYS = {
    "plain": {},
    "description": {"description": "About {birds}.\r\n\n", "system_instruction": "Be brief."},
    "few-shot": {"num_fewshot": 2, "template": "mmlu"},
    "texts": {"choices": "texts", "num_fewshot": 1},
    "template": {"template": "{{question|upper}}\n{% for c in choices %}- {{c}}\n{% endfor %}=>", "num_fewshot": 1},
    "chat": {"apply_chat_template": True, "description": "About birds.", "system_instruction": "Be brief."},
    "chat, examples as turns": {"apply_chat_template": True, "num_fewshot": 2},
    "chat, examples in one": {"apply_chat_template": True, "num_fewshot": 2, "fewshot_as_multiturn": False},
    "cut": {"max_length": 20},
    "orders": {"permute_choices": "cyclic", "num_fewshot": 1},
    "all orders": {"permute_choices": "all"},
    "0.4.9": {"lm_eval_compat": "0.4.9"},
    "limit": {"limit": 2},
    "share": {"limit": 0.3},
}


def scored(monkeypatch, model, **options):
    """The prompts and requests that an evaluation gives to the model, and its result."""
    given = []
    score = LocalModel.score

    def spy(self, prompts, requests, **options):
        given.append((prompts, requests))
        return score(self, prompts, requests, **options)

    monkeypatch.setattr(LocalModel, "score", spy)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", wf.WmdpFastWarning)
        result = wf.evaluate(str(model), progress=False, **options)
    [(prompts, requests)] = given
    return prompts, requests, result


def shown(model, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", wf.WmdpFastWarning)
        return wf.rendered_prompts(model, **options)


def num_orders(way: str, num_choices: int) -> int:
    return {"orders": num_choices, "all orders": [1, 1, 2, 6, 24][num_choices]}.get(way, 1)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_shown_without_weights_is_what_is_scored(way, model, bare, questions, monkeypatch):
    prompts, requests, result = scored(monkeypatch, model, tasks=questions, **WAYS[way])
    found = shown(bare, count=COUNT, tasks=questions, **WAYS[way])
    expected, row = [], 0
    for place, own in enumerate(prompts):
        task = list(result.tasks)[place % 2]
        each = num_orders(way, 4 if task == "birds" else 3) - 1 if place >= 2 else 1
        for index in range(len(own)):
            number, order = index // each + 1, index % each + 1 if place >= 2 else 0
            choices = [
                (own.continuation(index, choice), requests.continuation(requests.choice_offsets[row] + choice).tolist())
                for choice in range(len(own.choices(index)))
            ]
            if number <= COUNT:
                expected.append(
                    (
                        task,
                        number,
                        order,
                        own.context(index),
                        requests.context(row).tolist(),
                        choices,
                        own.answers[index],
                    )
                )
            row += 1
    assert row == requests.num_questions
    assert [
        (
            one.task,
            one.question,
            one.order,
            one.prompt,
            list(one.tokens),
            [(choice.text, list(choice.tokens)) for choice in one.continuations],
            one.answer,
        )
        for one in found
    ] == expected
    assert len(found) >= 4 or way == "share"


@pytest.mark.parametrize("way", ["few-shot", "texts", "chat, examples as turns", "cut"])
def test_the_tokens_shown_give_the_log_likelihoods_of_the_evaluation(way, model, questions, monkeypatch):
    """Run through the model one by one, by hand."""
    _, _, result = scored(monkeypatch, model, tasks=questions, dtype="float32", **WAYS[way])
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    most = WAYS[way].get("max_length", 10**6)
    cut = 0
    for one in shown(model, count=COUNT, tasks=questions, **WAYS[way]):
        values = []
        for choice in one.continuations:
            read = [*one.tokens, *choice.tokens][choice.tokens_cut : -1]
            assert len(read) <= most
            cut = max(cut, choice.tokens_cut)
            with torch.no_grad():
                logits = network(torch.tensor([read])).logits[0, -len(choice.tokens) :].log_softmax(-1)
            values.append(float(logits.gather(1, torch.tensor(choice.tokens)[:, None]).sum()))
        outcome = result[one.task].outcome
        first = outcome.choice_offsets[one.question - 1]
        np.testing.assert_allclose(outcome.loglikelihood[first : first + len(values)], values, rtol=0, atol=1e-4)
    assert cut > 0 or way != "cut"


@pytest.mark.parametrize("name", ["llama3", "gpt2"])
def test_the_tokens_are_lm_evals(name, tmp_path, questions):
    lm = pytest.importorskip("lm_eval.models.huggingface")
    tiny_models.build("llama").save_pretrained(tmp_path)
    tokenizer = tokenizers_zoo.tokenizer(name)
    tokenizer.save_pretrained(tmp_path)
    theirs = lm.HFLM(pretrained=str(tmp_path), device="cpu")
    for one in shown(tmp_path, count=COUNT, tasks=questions, num_fewshot=1, choices="texts"):
        for choice in one.continuations:
            assert theirs._encode_pair(one.prompt, choice.text) == (list(one.tokens), list(choice.tokens))


def test_pieces_are_the_vocabularys_and_join_to_the_text(model, questions):
    tokenizer = AutoTokenizer.from_pretrained(model)
    for one in shown(model, tasks=questions):
        assert list(one.pieces) == tokenizer.convert_ids_to_tokens(list(one.tokens))
        assert tokenizer.convert_tokens_to_string(list(one.pieces[1:])) == one.prompt
        assert one.pieces[0] == tokenizer.bos_token


def test_a_model_in_memory_and_another_tokenizer_are_taken(model, questions, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(model)
    expected = shown(model, tasks=questions)
    in_memory = AutoModelForCausalLM.from_pretrained(model)
    assert shown(in_memory, tokenizer=tokenizer, tasks=questions) == expected
    other = tokenizers_zoo.tokenizer("gpt2")
    other.save_pretrained(tmp_path)
    assert shown(model, tokenizer=tmp_path, tasks=questions) == shown(model, tokenizer=other, tasks=questions)
    assert shown(model, tokenizer=other, tasks=questions) != expected
    with pytest.raises(ValueError, match="needs its tokenizer"):
        wf.rendered_prompts(in_memory, tasks=questions)


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "1"])
def test_a_count_that_is_none_is_refused(model, questions, count):
    with pytest.raises(ValueError, match="count must be a whole number of questions of at least 1"):
        wf.rendered_prompts(model, tasks=questions, count=count)


def test_a_server_is_refused(questions):
    with pytest.raises(TypeError, match=r"name the folder, or the hub name, that has it and config\.json"):
        wf.rendered_prompts(wf.Server(model="m", base_url="http://localhost:1/v1"), tasks=questions)


def test_an_unknown_parameter_is_refused(model, questions):
    with pytest.raises(TypeError, match="dtype"):
        wf.rendered_prompts(model, tasks=questions, dtype="float32")


# The command.


def run(capsys, *argv: object) -> tuple[int, str, str]:
    code = cli.main(["eval", *map(str, argv)])
    return code, *capsys.readouterr()


def test_the_command_prints_prompts_as_they_are(bare, questions, capsys):
    code, out, err = run(
        capsys, bare, "--tasks", questions[1], "--show-prompts", 1, "--description", "About \x1b[31m\n"
    )
    [one] = shown(bare, tasks=questions[1], description="About \x1b[31m\n")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"fish, question 1: {len(one.tokens)} tokens"
    prompt = [line.removeprefix("  | ") for line in lines if line.startswith("  | ")]
    assert prompt == one.prompt.replace("\x1b", "\\x1b").split("\n")
    assert prompt == ["About \\x1b[31m", "What is fish 0? 鳥", "A. wren", "B. an oak", "C. carp", "Answer:"]
    rest = " ".join("".join(f"{line}\n" for line in lines[len(prompt) + 1 :]).split())
    pairs = " ".join(f"{token} {piece!r}" for token, piece in zip(one.tokens, one.pieces, strict=True))
    assert rest.startswith(f"tokens: {pairs} continuation ' A' (right): {one.continuations[0].tokens[0]} ")
    assert [line.split(":")[0] for line in lines if "continuation" in line] == [
        "  continuation ' A' (right)",
        "  continuation ' B'",
        "  continuation ' C'",
    ]


@CUT_PROMPTS
def test_as_json_everything_is_exact(bare, questions, capsys):
    argv = ["--tasks", ",".join(questions), "--num-fewshot", 2, "--apply-chat-template", "--json", "--show-prompts", 2]
    code, out, _ = run(capsys, bare, *argv)
    found = shown(bare, tasks=questions, num_fewshot=2, apply_chat_template=True, count=2)
    assert code == 0
    read = json.loads(out)["prompts"]
    assert [(one["prompt"], one["tokens"], one["pieces"]) for one in read] == [
        (one.prompt, list(one.tokens), list(one.pieces)) for one in found
    ]
    assert [[choice["text"] for choice in one["continuations"]] for one in read] == [list("ABCD")] * 2 + [
        list("ABC")
    ] * 2
    assert [(one["task"], one["question"], one["answer"]) for one in read] == [
        ("birds", 1, 0), ("birds", 2, 1), ("fish", 1, 0), ("fish", 2, 1),
    ]  # fmt: skip


def test_more_than_there_are_is_all_of_them(bare, questions, capsys):
    code, out, _ = run(capsys, bare, "--tasks", questions[1], "--show-prompts", 1000)
    assert code == 0
    assert out.count("fish, question") == 2


@printed(r"1 of 1 prompt is longer than the 10 tokens")
def test_a_prompt_that_is_cut_says_so(bare, questions, capsys):
    code, out, err = run(capsys, bare, "--tasks", questions[1], "--show-prompts", 1, "--max-length", 10)
    [one] = shown(bare, tasks=questions[1], max_length=10)
    assert code == 0
    cut = one.continuations[0].tokens_cut
    assert cut == len(one.tokens) + len(one.continuations[0].tokens) - 1 - 10
    assert f"continuation ' A' (right), after a prompt without its first {cut} tokens: " in out
    assert "1 of 1 prompt is longer than the 10 tokens" in err


def test_options_of_scoring_do_no_harm(bare, questions, capsys):
    plain = run(capsys, bare, "--tasks", questions[0], "--show-prompts", 2)
    scoring = (
        "--dtype bfloat16 --device cpu --engine padded --token-budget 10 --score-mode model --allow-missing --quiet"
    )
    assert run(capsys, bare, "--tasks", questions[0], "--show-prompts", 2, *scoring.split()) == plain


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--show-prompts", "0"], "'0' is not a whole number of at least 1"),
        (["--show-prompts", "-1"], "'-1' is not a whole number of at least 1"),
        (["--show-prompts", "all"], "'all' is not a whole number of at least 1"),
        (["--show-prompts"], "expected one argument"),
        (["--show-prompts", "1", "--output", "x"], "--show-prompts scores nothing that could be saved"),
        (["--show-prompts", "1", "--engine", "openai", "--base-url", "http://x/v1"], "leave --engine openai and what"),
        (["--show-prompts", "1", "--text", "x.txt"], "--show-prompts is for tasks"),
        (["--show-prompts", "1", "--engine", "vllm"], "--show-prompts needs the tokenizer of a served model"),
        (["--show-prompts", "1", "--base-url", "http://x/v1"], "--base-url is for a model that is served"),
    ],
)
def test_what_makes_no_sense_is_wrong_usage(argv, said, bare, questions, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["eval", str(bare), "--tasks", questions[0], *argv])
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("without", "said"),
    [
        ("config.json", "has no config.json"),
        ("tokenizer.json", "the tokenizer of"),
    ],
)
def test_a_folder_that_lacks_what_is_needed_is_told(without, said, bare, questions, tmp_path, capsys):
    folder = shutil.copytree(bare, tmp_path / "m")
    Path(folder / without).unlink()
    code, out, err = run(capsys, folder, "--tasks", questions[0], "--show-prompts", 1)
    assert (code, out) == (1, "")
    assert said in err
    assert err.count("\n") == 1


def test_faults_of_prompts_are_those_of_the_evaluation(model, questions, capsys):
    for argv in (
        ["--template", "{{hint}}"],
        ["--apply-chat-template", "none"],
        ["--num-fewshot", "9"],
        ["--description", "{{question}}"],
        ["--subjects", "virology"],
        ["--permute-choices", "cyclic", "--choices", "texts"],
        ["--lm-eval-compat", "0.4.2", "--apply-chat-template"],
    ):
        code, _, told = run(capsys, model, "--tasks", questions[0], *argv, "--quiet")
        assert code == 1
        error = told[told.index("error: ") :]  # after the bar of transformers
        assert run(capsys, model, "--tasks", questions[0], *argv, "--show-prompts", 1) == (1, "", error)


def test_of_the_hub_only_configuration_and_tokenizer_are_needed(bare, questions, tmp_path):
    commit = "a" * 40
    repository = tmp_path / "hub" / "models--owner--model"
    shutil.copytree(bare, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    argv = ["eval", "owner/model", "--tasks", questions[0], "--show-prompts", "2", "--json"]
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "wmdp_fast", *argv], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = [one["tokens"] for one in json.loads(done.stdout)["prompts"]]
    assert found == [list(one.tokens) for one in shown(bare, tasks=questions[0], count=2)]
