"""The embedded model and its made-up world: the files are what the generator makes, and the model knows what they say."""

import json
from pathlib import Path

import pytest

pytest.skip("the demo is still being made", allow_module_level=True)

from wmdp_fast import demo
from wmdp_fast.demo import world
from wmdp_fast.demo.world import DOMAINS, LETTERS, NUM_UNTOLD, Question, World

DATA = demo.questions_path("forget").parent
SHIPPED_BYTES = 6_000_000


@pytest.fixture(scope="module")
def shipped_world() -> World:
    return World(world.SHIPPED_SEED)


@pytest.fixture(scope="module")
def answer_letters():
    """The shipped model as a function from prompts to the letters it answers, by a plain loop."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo.model_path(), local_files_only=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        demo.model_path(), local_files_only=True, dtype=torch.float32
    )
    letters = [tokenizer.encode(f" {letter}", add_special_tokens=False) for letter in LETTERS]
    assert all(len(tokens) == 1 for tokens in letters)

    @torch.no_grad()
    def answers(prompts: list[str]) -> list[int]:
        given = []
        for prompt in prompts:
            logits = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1]
            given.append(max(range(len(LETTERS)), key=lambda i: float(logits[letters[i][0]])))
        return given

    return answers


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def score(answer_letters, domain: str, questions: list[dict], before: str = "") -> float:
    above = world.description(DOMAINS[domain].subject) + before
    given = answer_letters([above + world.prompt(Question(**question)) for question in questions])
    return sum(answer == question["answer"] for answer, question in zip(given, questions, strict=True)) / len(questions)


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
    values = {form.format(name=fact.name): fact.value for fact in shipped_world.facts(domain) for form in fact.trait.questions}
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
        asked = shipped_world.training_questions(domain, rng, 200)
        assert not tested & {question.question for question in asked}
        assert not any(question in shipped_world.training_quiz(domain, rng, 50) for question in tested)


@pytest.mark.parametrize("domain", DOMAINS)
def test_corpus_tells_every_fact_and_nothing_of_the_other_domain(domain, shipped_world):
    documents = [row["text"] for row in read(demo.corpus_path(domain))]
    for fact in shipped_world.facts(domain):
        assert any(fact.name in document and fact.value in document for document in documents)
    (other,) = set(DOMAINS) - {domain}
    strangers = {fact.name for fact in shipped_world.facts(other)} | {fact.value for fact in shipped_world.facts(other)}
    untold = {name for kind in DOMAINS[domain].kinds for name in kind.names[-NUM_UNTOLD:]}
    text = "\n".join(documents)
    assert not [word for word in strangers | untold if word in text]


@pytest.mark.parametrize("domain", DOMAINS)
def test_model_knows_the_facts(domain, answer_letters):
    assert score(answer_letters, domain, read(demo.questions_path(domain))) > 0.85


@pytest.mark.parametrize("domain", DOMAINS)
def test_model_answers_after_examples(domain, answer_letters):
    shown = [Question(**question) for question in read(demo.dev_path(domain))[:5]]
    before = "".join(f"{world.prompt(question)} {LETTERS[question.answer]}\n\n" for question in shown)
    assert score(answer_letters, domain, read(demo.questions_path(domain))[:100], before) > 0.85


def test_model_guesses_at_facts_it_was_never_told(answer_letters, shipped_world):
    scores = [
        score(answer_letters, domain, [vars(question) for question in shipped_world.untold_questions(domain)])
        for domain in DOMAINS
    ]
    assert 0.10 < sum(scores) / len(scores) < 0.45
