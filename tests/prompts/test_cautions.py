"""What a user is told about the questions and prompts of a run: repeated examples, cut prompts, joined choices."""

from __future__ import annotations

import json
import math
import warnings
from typing import TYPE_CHECKING, Any

import pytest
from tokenizers import Tokenizer as HfTokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

import wmdp_fast as wf
from tests.reference.requests import LmEvalTokenizer
from tests.support import tiny_models, tokenizers_zoo
from tests.support.expected_warnings import CUT_PROMPTS, LONG_PROMPTS, ONE_LETTER
from wmdp_fast import PromptTemplate, QuestionSet, Tokenizer
from wmdp_fast.exceptions import TaskError, TokenizerError, WmdpFastWarning
from wmdp_fast.prompts import cautions, prepare
from wmdp_fast.tasks.resolve import resolve

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ROWS = [
    {"question": f"Which of these is bird {i}{' of the wood' * (i % 7)}?", "choices": ["wren", "oak"], "answer": i % 2}
    for i in range(20)
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# Prompts that are cut off.


@ONE_LETTER
def test_cut_prompts_are_counted_as_lm_eval_counts_them(llama_dir: Path, tmp_path: Path) -> None:
    questions = write(tmp_path / "birds.jsonl", ROWS)
    tokenizer = tiny_models.tokenizer()
    slow = LmEvalTokenizer(tokenizer, tokenizer.bos_token_id)
    prompts = PromptTemplate("mmlu").render(QuestionSet.from_rows(ROWS))
    lengths = [
        [sum(map(len, slow.encode_pair(prompts.context(q), prompts.continuation(q, c)))) for c in range(2)]
        for q in range(len(ROWS))
    ]
    limit = sorted(max(own) for own in lengths)[12]
    # lm-eval warns of a request if context and continuation have more than `max_length + 1` tokens.
    lost = [[max(0, length - limit - 1) for length in own] for own in lengths]
    with pytest.warns(WmdpFastWarning, match="are longer than the .* tokens that the model reads at once") as caught:
        result = wf.evaluate(llama_dir, tasks=questions, device="cpu", max_length=limit, progress=False)
    [said] = [str(one.message) for one in caught if "longer than" in str(one.message)]
    most = max(map(max, lost))
    worst = [max(own) for own in lost].index(most)
    recorded = result.to_json()["wmdp_fast"]
    assert recorded["truncated"] == {
        "questions": sum(any(own) for own in lost),
        "choices": sum(one > 0 for own in lost for one in own),
        "most_tokens_lost": most,
        "worst": f"{questions}, row {worst + 1}",
    }
    assert 0 < recorded["truncated"]["questions"] < len(ROWS)
    assert said in recorded["warnings"]


def test_prompts_that_fit_are_not_warned_of(llama_dir: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    questions = write(tmp_path / "birds.jsonl", ROWS[:3])
    recorded = wf.evaluate(llama_dir, tasks=questions, device="cpu", progress=False).to_json()["wmdp_fast"]
    assert recorded["truncated"] == {"questions": 0, "choices": 0, "most_tokens_lost": 0}
    assert recorded["joined_choices"] == {"choices": 0, "first": None}
    assert recorded["columns_without_json"] == {}
    assert not [one for one in recwarn if "longer than" in str(one.message) or "inside a token" in str(one.message)]


# Choices that begin inside a token of their prompt.


@pytest.fixture(scope="module")
def joining() -> PreTrainedTokenizerFast:
    """A tokenizer that makes one token of `:` and `x`."""
    letters = ["<s>", *"abcdefghijklmnopqrstuvwxyzQA: \n?.", ":x"]
    model = BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[(":", "x")])
    return PreTrainedTokenizerFast(tokenizer_object=HfTokenizer(model), bos_token="<s>")


def rendered(choices: list[list[str]]) -> Any:
    rows = [{"question": "q?", "choices": own, "answer": 0} for own in choices]
    template = PromptTemplate("{{question}} A:", choices="texts", target_delimiter="")
    return template.render(QuestionSet.from_rows(rows, file="q.jsonl"))


def fast(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    return Tokenizer(
        tokenizer.backend_tokenizer.to_str(), add_special_tokens=False, prefix_token_id=0, prefix_text="<s>"
    )


def test_what_is_left_of_a_joined_choice_is_scored_as_in_lm_eval_and_said(joining: PreTrainedTokenizerFast) -> None:
    prompts = rendered([["ab", "cd"], ["xy", "ab"], ["xyz", "xab"]])
    requests = fast(joining).encode_requests([prompts], 100)
    slow = LmEvalTokenizer(joining, 0, add_special_tokens=False)
    for question in range(3):
        for choice in range(2):
            pair = slow.encode_pair(prompts.context(question), prompts.continuation(question, choice))
            ours = requests.context(question).tolist(), requests.continuation(2 * question + choice).tolist()
            assert ours == pair
    assert (requests.joined_choices, requests.first_joined) == (3, "q.jsonl, row 2")
    details, [sentence] = cautions.joined_choices(requests)
    assert details == {"choices": 3, "first": "q.jsonl, row 2"}
    assert sentence.startswith(
        "3 of 6 choices begin inside a token of the prompt's end, so that only the rest is scored"
    )


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (["x", "ab"], 'row 1: choice 1 has no tokens of its own: the tokenizer makes one token of its text "x" and'),
        (["ab", ""], "q.jsonl, row 1: choice 2 has no tokens, since it is empty; give every"),
        (["ab", "ÿ"], 'q.jsonl, row 1: choice 2 has no tokens: the tokenizer drops its text "ÿ"'),
    ],
)  # fmt: skip
def test_a_choice_without_tokens_is_refused_for_the_right_reason(
    joining: PreTrainedTokenizerFast, choices: list[str], message: str
) -> None:
    """lm-eval stops at an assertion (`assert len(continuation_enc) > 0`)."""
    prompts = rendered([choices])
    slow = LmEvalTokenizer(joining, 0, add_special_tokens=False)
    assert [] in [slow.encode_pair(prompts.context(0), prompts.continuation(0, choice))[1] for choice in range(2)]
    with pytest.raises(TokenizerError) as caught:
        fast(joining).encode_requests([prompts], 100)
    assert message in str(caught.value)


# Few-shot examples.


@LONG_PROMPTS
def test_few_shot_examples_come_from_the_file_that_is_named(llama_dir: Path, tmp_path: Path) -> None:
    questions = write(tmp_path / "birds.jsonl", ROWS[:6])
    beside = write(tmp_path / "birds_dev.jsonl", ROWS[6:9])
    elsewhere = write(tmp_path / "other" / "examples.jsonl", ROWS[9:12])
    options = {"tasks": questions, "device": "cpu", "num_fewshot": 2, "max_length": 2048, "progress": False}
    named = wf.evaluate(llama_dir, fewshot_file=elsewhere, **options)["birds"]
    default = wf.evaluate(llama_dir, **options)["birds"]
    assert ROWS[9]["question"] in named.prompts.context(0)
    assert ROWS[6]["question"] in default.prompts.context(0)
    again = wf.evaluate(llama_dir, fewshot_file=beside, **options)["birds"]
    assert again.prompts.context(5) == default.prompts.context(5)
    assert named.task.fewshot_files == (elsewhere,)


def test_a_few_shot_file_needs_a_number_and_files_to_be_for(tmp_path: Path) -> None:
    questions = write(tmp_path / "birds.jsonl", ROWS)
    with pytest.raises(TaskError, match="say how many with num_fewshot"):
        resolve(questions, fewshot_file=questions)
    with pytest.raises(TaskError, match="fewshot_file is for question files given by path"):
        resolve("mmlu_virology", fewshot_file=questions, num_fewshot=1)
    with pytest.raises(FileNotFoundError, match="no such file with few-shot examples"):
        resolve(questions, fewshot_file=tmp_path / "none.jsonl", num_fewshot=1)
    with pytest.raises(TaskError, match="examples are in a question file, whose name ends in"):
        resolve(questions, fewshot_file=__file__, num_fewshot=1)
    with pytest.raises(TaskError, match=r"fewshot_file \(--few-shot-file\), put them into a file birds_dev beside"):
        resolve(questions, num_fewshot=1)


@LONG_PROMPTS
def test_a_question_among_its_own_examples_is_warned_of(llama_dir: Path, tmp_path: Path) -> None:
    swapped = {**ROWS[4], "choices": ROWS[4]["choices"][::-1], "question": f" {ROWS[4]['question']}\n"}
    other = {**ROWS[5], "choices": ["wren", "elm"]}
    questions = write(tmp_path / "birds.jsonl", ROWS[:6])
    examples = write(tmp_path / "examples.jsonl", [swapped, other, ROWS[0]])
    options = {"tasks": questions, "fewshot_file": examples, "device": "cpu", "max_length": 2048, "progress": False}
    with pytest.warns(WmdpFastWarning) as caught:
        result = wf.evaluate(llama_dir, num_fewshot=2, **options)
    [said] = [str(one.message) for one in caught if "few-shot" in str(one.message)]
    assert said == (
        "birds: 1 question of 6 also is a few-shot example, so that the prompt gives the answer away; the first is row"
        f" 5 of {questions}"
    )
    assert said in result.to_json()["wmdp_fast"]["warnings"]
    with pytest.warns(
        WmdpFastWarning, match="birds: 2 questions of 6 also are few-shot examples, .* the first is row 1"
    ):
        wf.evaluate(llama_dir, num_fewshot=3, **options)


# Columns that JSON has no form for.


def test_samples_with_columns_that_json_has_no_form_for_are_said_to_differ(llama_dir: Path, tmp_path: Path) -> None:
    rows = [{**row, "score": math.nan} for row in ROWS[:3]]
    questions = write(tmp_path / "birds.jsonl", rows)
    options = {"tasks": questions, "device": "cpu", "progress": False, "output": tmp_path / "out"}
    with pytest.warns(
        WmdpFastWarning, match=r"birds: the column score holds NaN \(in row 1\); samples show it as null"
    ):
        result = wf.evaluate(llama_dir, log_samples=True, **options)
    assert result.to_json()["wmdp_fast"]["columns_without_json"] == {"birds": {"score": "NaN (in row 1)"}}


# Numbers of questions and tokens.


@pytest.mark.parametrize("limit", [0, -1, math.inf, -math.inf, math.nan, True, "3"])
def test_a_limit_that_is_no_positive_number_is_refused(tmp_path: Path, limit: Any) -> None:
    tasks = resolve(write(tmp_path / "birds.jsonl", ROWS)).tasks
    with pytest.raises(ValueError, match="limit must be a positive, finite number, not"):
        prepare.read_tasks(tasks, limit=limit)


@pytest.mark.parametrize(
    ("limit", "count"), [(1, 1), (2.9, 2), (0.01, 1), (0.5, 10), (1e300, 20), (10**30, 20), (20, 20)]
)
def test_a_limit_takes_as_many_questions_as_lm_eval_does(tmp_path: Path, limit: float, count: int) -> None:
    tasks = resolve(write(tmp_path / "birds.jsonl", ROWS)).tasks
    [read] = prepare.read_tasks(tasks, limit=limit)
    assert len(read.questions) == min(count, math.ceil(20 * limit) if limit < 1 else int(limit))
    assert read.available == 20


@pytest.mark.parametrize("option", ["max_length", "token_budget"])
@pytest.mark.parametrize("number", [0, -1, 10**30])
def test_a_number_of_tokens_that_cannot_be_counted_is_refused_before_the_model_is_read(
    tmp_path: Path, option: str, number: int
) -> None:
    questions = write(tmp_path / "birds.jsonl", ROWS)
    with pytest.raises(ValueError, match=f"{option} must be a number of tokens from 1 to"):
        wf.evaluate(tmp_path / "no-model", tasks=questions, **{option: number})
    with pytest.raises(TaskError, match="num_fewshot is"):
        wf.evaluate(tmp_path / "no-model", tasks=questions, num_fewshot=10**30)


# Files by two spellings.


@pytest.mark.parametrize(
    "spell", [lambda p: f"./{p.name},{p.name}", lambda p: [p.name, str(p)], lambda p: [p, p.parent]]
)
def test_one_file_by_two_spellings_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spell: Callable[[Path], Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    questions = write(tmp_path / "birds.jsonl", ROWS)
    assert [task.name for task in resolve(spell(questions)).tasks] == ["birds"]


def test_two_files_of_one_name_are_refused_by_the_paths_as_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("q.jsonl", "q.json", "other/q.jsonl"):
        write(tmp_path / name, ROWS)
    for one, other in (("./q.jsonl", "other/q.jsonl"), ("q.jsonl", "./q.json")):
        with pytest.raises(TaskError) as caught:
            resolve([one, other])
        assert str(caught.value) == (
            f"{one} and {other} would both be called 'q' in the results; rename one of them, or run them one by one"
        )


@pytest.mark.parametrize("kind", ["llama3", "bos_and_eos", "gpt2"])
def test_a_tokenizer_that_ends_every_text_is_told_of(kind: str, tmp_path: Path) -> None:
    tokenizer = tokenizers_zoo.tokenizer(kind)
    questions = write(tmp_path / "birds.jsonl", ROWS[:3])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        result = wf.evaluate(tiny_models.build("llama"), tokenizer=tokenizer, tasks=questions, progress=False)
    said = [str(one.message) for one in told if "the tokenizer puts behind every text" in str(one.message)]
    assert [one.startswith("prompts end in </s>, ") for one in said] == ([True] if kind == "bos_and_eos" else [])
    assert set(said) <= set(result.to_json()["wmdp_fast"]["warnings"])
    scores = result["birds"].outcome.loglikelihood[:4]
    # Letters of one token are one and the same then.
    assert (scores[0] == scores[1]) == (kind == "bos_and_eos")


@pytest.mark.parametrize(("max_length", "told"), [(None, False), (128, False), (1024, True)])
@CUT_PROMPTS
def test_prompts_beyond_what_the_model_reads_are_told_of(max_length: int | None, told: bool, tmp_path: Path) -> None:
    long = [{**row, "question": "The wren sings. " * 60 + str(row["question"])} for row in ROWS[:2]]
    questions = write(tmp_path / "birds.jsonl", long)
    asked: Any = {"tokenizer": tiny_models.tokenizer(), "tasks": questions, "max_length": max_length, "progress": False}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = wf.evaluate(tiny_models.build("llama"), **asked)
    said = [str(one.message) for one in caught if "the model reads 128 at once: max_length" in str(one.message)]
    assert bool(said) == told
    assert set(said) <= set(result.to_json()["wmdp_fast"]["warnings"])
