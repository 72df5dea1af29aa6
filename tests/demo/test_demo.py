"""The embedded model and its made-up world: the files are what the generator makes; the model knows what they say."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
from dataclasses import asdict
from pathlib import Path

import pytest

import wmdp_fast
from wmdp_fast import cli, demo
from wmdp_fast.cli import demo as cli_demo
from wmdp_fast.demo import run, train, world
from wmdp_fast.demo.world import DOMAINS, LETTERS, NUM_UNTOLD, World

DATA = demo.data_path()
SHIPPED_BYTES = 6_000_000


@pytest.fixture(scope="module")
def shipped_world() -> World:
    return World(world.SHIPPED_SEED)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_shipped_files_are_small():
    shipped = [path for folder in (DATA, demo.model_path()) for path in folder.iterdir()]
    assert sum(path.stat().st_size for path in shipped) <= SHIPPED_BYTES


def test_text_files_are_what_the_world_writes(shipped_world):
    written = shipped_world.files()
    assert {path.name for path in DATA.iterdir()} == set(written)
    for name, text in written.items():
        assert (DATA / name).read_bytes() == text.encode(), name


def test_another_seed_deals_other_facts(shipped_world):
    assert World(world.SHIPPED_SEED + 1).files() != shipped_world.files()


@pytest.mark.parametrize("domain", DOMAINS)
def test_questions_have_wmdp_layout_and_balanced_answers(domain):
    questions = read(demo.questions_path(domain))
    assert len(questions) >= 300
    for question in questions:
        assert list(question) == ["question", "choices", "answer"]
        assert len(set(question["choices"])) == len(LETTERS)
    counts = [sum(question["answer"] == i for question in questions) for i in range(len(LETTERS))]
    assert max(counts) == min(counts)


@pytest.mark.parametrize("domain", DOMAINS)
def test_choices_hold_the_true_value_and_no_other(domain, shipped_world):
    values = {
        form.format(name=fact.name): fact.value for fact in shipped_world.facts(domain) for form in fact.trait.questions
    }
    for question in read(demo.questions_path(domain)) + read(demo.dev_path(domain)):
        assert question["choices"][question["answer"]] == values[question["question"]]


@pytest.mark.parametrize("domain", DOMAINS)
def test_dev_and_test_share_no_fact(domain, shipped_world):
    fact_of = {
        form.format(name=fact.name): (fact.name, fact.trait.values)
        for fact in shipped_world.facts(domain)
        for form in fact.trait.questions
    }
    tested = {fact_of[question["question"]] for question in read(demo.questions_path(domain))}
    shown = {fact_of[question["question"]] for question in read(demo.dev_path(domain))}
    assert len(shown) == world.NUM_DEV
    assert not tested & shown


@pytest.mark.parametrize("domain", DOMAINS)
def test_training_never_asks_a_fact_as_the_test_does(domain, shipped_world):
    tested = {question["question"] for question in read(demo.questions_path(domain))}
    rng = shipped_world.generator("a check")
    for _ in range(20):
        assert not tested & {question.question for question in shipped_world.training_questions(domain, rng, 200)}
        assert not tested & {question for question, _ in shipped_world.training_quiz(domain, rng, 200)}


@pytest.mark.parametrize("domain", DOMAINS)
def test_corpus_tells_every_fact_and_nothing_of_the_other_domain(domain, shipped_world):
    documents = [row["text"] for row in read(demo.corpus_path(domain))]
    for fact in shipped_world.facts(domain):
        assert any(fact.name in document and fact.value in document for document in documents)
    (other,) = set(DOMAINS) - {domain}
    # Values are everyday words, some of which both domains have.
    strangers = {fact.name for fact in shipped_world.facts(other)}
    untold = {name for kind in DOMAINS[domain].kinds for name in kind.names[-NUM_UNTOLD:]}
    text = "\n".join(documents)
    assert not [word for word in strangers | untold if word in text]


@pytest.fixture(scope="module")
def demo_output(tmp_path_factory):
    """The folder and the report of one run of the command."""
    folder = tmp_path_factory.mktemp("demo")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert cli.main(["demo", "--output", str(folder), "--quiet"]) == 0
    return folder, printed.getvalue()


def saved_accuracies(folder):
    [results_file] = folder.glob("*/results_*.json")
    results = json.loads(results_file.read_text(encoding="utf-8"))["results"]
    for domain, about in DOMAINS.items():
        assert results[about.file_name]["alias"] == f"{about.file_name} ({domain})"
        [samples_file] = results_file.parent.glob(f"samples_{about.file_name}_*.jsonl")
        assert len(read(samples_file)) == len(read(demo.questions_path(domain)))
    return {domain: results[about.file_name]["acc,none"] for domain, about in DOMAINS.items()}


def test_demo_command_measures_unlearns_and_measures_again(demo_output):
    folder, printed = demo_output
    before, after = saved_accuracies(folder / "before"), saved_accuracies(folder / "after")
    assert before["forget"] > 0.95
    assert before["retain"] > 0.95
    # How far it goes over several seeds is what `test_unlearning_demo` asks.
    assert after["forget"] < 0.40
    assert after["retain"] > 0.93
    assert (folder / "unlearned" / "model.safetensors").is_file()
    for about in DOMAINS.values():
        assert printed.count(f"{about.file_name} (") == 2


def test_the_demo_says_what_other_ways_of_asking_bring_back(demo_output):
    """Its numbers are those of `eval` with these options, and they say that one way of asking flatters."""
    folder, printed = demo_output
    own, plain, examples, other = run_otherwise(printed)
    after = saved_accuracies(folder / "after")
    assert own == pytest.approx((after["forget"], after["retain"]), abs=0.005)
    files = {domain: demo.questions_path(domain) for domain in DOMAINS}
    options = {"dtype": "float32", "progress": False}
    for found, asked in ((plain, {}), (examples, {"num_fewshot": 5})):
        result = wmdp_fast.evaluate(folder / "unlearned", tasks=list(files.values()), **asked, **options)
        expected = [result[about.file_name]["acc"] for about in DOMAINS.values()]
        assert found == pytest.approx(expected, abs=0.005)
    sentence = f"The following are multiple choice questions (with answers) about {DOMAINS['forget'].subject}.\n\n"
    result = wmdp_fast.evaluate(folder / "unlearned", tasks=files["retain"], description=sentence, **options)
    assert other[1] == pytest.approx(result[DOMAINS["retain"].file_name]["acc"], abs=0.005)
    # Were it no longer so, the demo would have been mended, and its text should say something else.
    assert plain[0] - own[0] > 0.3
    assert own[1] - other[1] > 0.3
    assert "So the first line flatters" in printed


def run_otherwise(printed):
    """For each way of asking the accuracies afterwards, forget and retain."""
    lines = [line for line in printed.splitlines() if line.count(" -> ") == 2]
    return [tuple(float(pair.split(" -> ")[1]) for pair in re.findall(r"[\d.]+ -> [\d.]+", line)) for line in lines]


def test_the_demo_run_has_a_good_verdict_by_its_activations(demo_output):
    """Steered and kept: activations do not show that only one way of asking was unlearned, accuracy does."""
    folder, _ = demo_output
    record = json.loads((folder / "unlearned" / "unlearn.json").read_text(encoding="utf-8"))
    assert record["verdict"] is None
    assert [one["forgetting"] for one in record["effects"]] == ["steered"]


def test_the_demo_runs_again_over_its_own_results_but_not_over_other_files(demo_output, tmp_path, capsys):
    folder, _ = demo_output
    run._clear(folder)
    assert [path.name for path in folder.iterdir()] == ["retain.jsonl"]
    mine = tmp_path / "after" / "notes.txt"
    mine.parent.mkdir()
    mine.write_text("mine", encoding="utf-8")
    assert cli.main(["demo", "--output", str(tmp_path), "--quiet"]) == 1
    assert "not from an earlier demo" in capsys.readouterr().err
    assert mine.read_text(encoding="utf-8") == "mine"


@pytest.mark.slow
def test_the_command_that_the_demo_proposes_answers_after_examples(capsys):
    [line] = [line for line in cli_demo.next_steps(Path("results")).splitlines() if "--num-fewshot" in line]
    program, *argv = shlex.split(line)
    assert program == "wmdp-fast"
    assert cli.main([*argv, "--limit", "40", "--device", "cpu", "--json", "--quiet"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert results[DOMAINS["forget"].file_name]["acc,none"] > 0.85


def test_model_guesses_at_facts_it_was_never_told(shipped_world, tmp_path):
    files = []
    for domain, about in DOMAINS.items():
        files.append(tmp_path / f"{about.file_name}_test.jsonl")
        rows = [json.dumps(asdict(question)) + "\n" for question in shipped_world.untold_questions(domain)]
        files[-1].write_text("".join(rows), encoding="utf-8")
    result = wmdp_fast.evaluate(
        demo.model_path(), tasks=files, template="mmlu", device="cpu", dtype="float32", progress=False
    )
    scores = [task["acc"] for task in result.tasks.values()]
    assert 0.10 < sum(scores) / len(scores) < 0.45


@pytest.mark.slow
def test_training_writes_a_whole_demo_that_its_own_evaluation_reads(tmp_path, shipped_world):
    train.main(["--output", str(tmp_path), "--steps", "2"])
    for name, text in shipped_world.files().items():
        assert (demo.data_path(tmp_path) / name).read_bytes() == text.encode()
    assert (demo.model_path(tmp_path) / "tokenizer.json").read_bytes() == (
        demo.model_path() / "tokenizer.json"
    ).read_bytes()
