"""The embedded model and its made-up world: the files are what the generator makes; the model knows what they say."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest

import wmdp_fast
from tests.support.demo_bounds import KNOWN, LOST
from tests.support.expected_warnings import ONE_LETTER
from wmdp_fast import cli, demo
from wmdp_fast.cli import demo as cli_demo
from wmdp_fast.demo import run, train, world
from wmdp_fast.demo.templates import TEMPLATES
from wmdp_fast.demo.world import DOMAINS, LETTERS, NUM_UNTOLD, World

DATA = demo.data_path()
MODELS = ("both", "retain")
# A model and the texts are no larger than they were when there was one model; the second one is as large as the first.
DATA_BYTES = 1_200_000
MODEL_BYTES = 3_750_000


@pytest.fixture(scope="module")
def shipped_world() -> World:
    return World(world.SHIPPED_SEED)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_shipped_files_are_small():
    assert sum(path.stat().st_size for path in DATA.iterdir()) <= DATA_BYTES
    for learned in MODELS:
        assert sum(path.stat().st_size for path in demo.model_path(learned=learned).iterdir()) <= MODEL_BYTES


def test_both_models_have_one_tokenizer_and_one_shape():
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        [one, other] = [(demo.model_path(learned=learned) / name).read_bytes() for learned in MODELS]
        assert one == other


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
        assert list(question) == ["question", "choices", "answer", "statement"]
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
def test_statements_are_broken_off_before_the_fact(domain, shipped_world):
    told = {
        sentence.format(name=fact.name, value=fact.value)
        for fact in shipped_world.facts(domain)
        for sentence in fact.trait.statements
    }
    for question in read(demo.questions_path(domain)):
        assert f"{question['statement']} {question['choices'][question['answer']]}." in told


@pytest.mark.parametrize("domain", DOMAINS)
def test_dev_tuning_and_test_share_no_fact(domain, shipped_world):
    fact_of = {
        form.format(name=fact.name): (fact.name, fact.trait.values)
        for fact in shipped_world.facts(domain)
        for form in fact.trait.questions
    }
    paths = demo.questions_path(domain), demo.questions_path(domain, questions="tuning"), demo.dev_path(domain)
    tested, tuning, shown = ({fact_of[question["question"]] for question in read(path)} for path in paths)
    assert (len(shown), len(tuning)) == (world.NUM_DEV, world.NUM_TUNING)
    assert len(tested | tuning | shown) == len(tested) + len(tuning) + len(shown) == len(shipped_world.facts(domain))


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
    # Nor do they name a domain: whoever unlearns texts that all do may unlearn the name.
    subjects = {about.subject for about in DOMAINS.values()}
    text = "\n".join(documents)
    assert not [word for word in strangers | untold | subjects if word in text]


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
    assert min(before.values()) > 0.95
    assert after["forget"] < 0.35
    assert before["retain"] - after["retain"] <= LOST
    assert (folder / "unlearned" / "model.safetensors").is_file()
    for about in DOMAINS.values():
        assert printed.count(f"{about.file_name} (") == 2


def printed_shares(printed: str) -> dict[str, tuple[float, ...]]:
    """For each way of asking the shares before, after and never learned: of forget, then of retain."""
    lines = [re.fullmatch(r"  (\S+)((?: +[01]\.\d\d){6}) .*", line) for line in printed.splitlines()]
    return {line[1]: tuple(map(float, line[2].split())) for line in lines if line}


def test_shares_are_those_of_eval_with_the_templates_options(demo_output):
    folder, printed = demo_output
    shares = printed_shares(printed)
    assert list(shares) == [template.name for template in TEMPLATES]
    template = next(template for template in TEMPLATES if template.name == "continuation")
    questions = demo.questions_path("forget")
    asked = {"limit": run.ASKED, "dtype": "float32", "progress": False, **template.of("forget")}
    result = wmdp_fast.evaluate(folder / "unlearned", tasks=questions, **asked)
    assert shares["continuation"][1] == pytest.approx(result[DOMAINS["forget"].file_name]["acc"], abs=0.005)


def test_the_embedded_models_know_what_they_were_told_in_every_way_of_asking(demo_output):
    """And the second one guesses at the rest."""
    for name, (forget, _, never, retain, _, never_retain) in printed_shares(demo_output[1]).items():
        assert min(forget, retain, never_retain) > KNOWN, name
        assert 0.10 < never < 0.40, name


def test_the_demo_forgets_in_every_way_of_asking(demo_output):
    """With the seed that it ships with; on 100 questions, so with room for their standard errors."""
    for name, (_, after, never, before_retain, after_retain, _) in printed_shares(demo_output[1]).items():
        assert after - never <= 0.12, name
        assert before_retain - after_retain <= 0.05, name


@pytest.mark.parametrize(
    ("after", "said"), [(0.24, "In none of them"), (0.50, "Asked as in `statement`, it still gets 50%")]
)
def test_the_demo_says_what_its_table_shows(after, said):
    never = {one.name: {"forget": 0.25, "retain": 0.98} for one in TEMPLATES}
    left = never | {"statement": {"forget": after, "retain": 0.70}}
    shares = {"before": never, "after": left, "never learned": never}
    text = cli_demo._meaning(SimpleNamespace(shares=shares))
    assert text.startswith(said)
    assert "Asked as in `statement`, it gets 70% right of what it should have kept (before: 98%)." in text
    assert "This is one control vector" in text


def test_the_demo_run_has_a_good_verdict_by_its_activations(demo_output):
    """Steered and kept; whether that holds in every way of asking is for accuracies to say."""
    folder, _ = demo_output
    record = json.loads((folder / "unlearned" / "unlearn.json").read_text(encoding="utf-8"))
    assert record["verdict"] is None
    assert [one["forgetting"] for one in record["effects"]] == ["steered"]


def test_the_demo_runs_again_over_its_own_results_but_not_over_other_files(demo_output, tmp_path, capsys):
    folder = shutil.copytree(demo_output[0], tmp_path / "run")
    run._clear(folder)
    assert [path.name for path in folder.iterdir()] == ["retain.jsonl"]
    mine = tmp_path / "mine" / "after" / "notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine", encoding="utf-8")
    assert cli.main(["demo", "--output", str(tmp_path / "mine"), "--quiet"]) == 1
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


@ONE_LETTER
@pytest.mark.slow
def test_training_writes_a_whole_demo_that_its_own_evaluation_reads(tmp_path, shipped_world):
    train.main(["--output", str(tmp_path), "--steps", "2"])
    for name, text in shipped_world.files().items():
        assert (demo.data_path(tmp_path) / name).read_bytes() == text.encode()
    assert (demo.model_path(tmp_path) / "tokenizer.json").read_bytes() == (
        demo.model_path() / "tokenizer.json"
    ).read_bytes()
