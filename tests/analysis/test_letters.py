"""A model that answers with one letter is named everywhere, and what it knows beside that is measured."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import wmdp_fast as wf
from tests.support import tiny_models
from tests.support.evaluations import NEAR_TIE, eval_result, task_of
from tests.support.expected_warnings import printed
from wmdp_fast import cli, evaluation_run
from wmdp_fast._rust import PromptTemplate, QuestionSet
from wmdp_fast.analysis import statistics
from wmdp_fast.analysis.comparison import compare
from wmdp_fast.analysis.rescoring import rescore
from wmdp_fast.cli.show import lines
from wmdp_fast.exceptions import WmdpFastWarning
from wmdp_fast.report.gather import gather
from wmdp_fast.results import letters
from wmdp_fast.results.result import EvalResult, TaskResult, from_evaluation

if TYPE_CHECKING:
    from pathlib import Path


def result_of(knowledge: float, preference: float, n: int = 80, **options: Any) -> EvalResult:
    """A model that knows so much, and prefers A by so many nats."""
    rng = np.random.default_rng(3)
    gold = np.arange(n) % 4
    scores = rng.normal(size=(n, 4)) - 20
    scores[np.arange(n), gold] += knowledge
    scores[:, 0] += preference
    rows = [{"question": f"Q{i}?", "choices": list("wxyz"), "answer": int(right)} for i, right in enumerate(gold)]
    questions = QuestionSet.from_rows(rows, file="clouds.parquet")
    prompts = PromptTemplate("mmlu", choices="letters", description="").render(questions, questions, 0)
    task = TaskResult.from_scores(
        task_of("clouds"),
        questions,
        prompts,
        scores.ravel(),
        np.zeros(scores.size, dtype=bool),
        near_tie=NEAR_TIE,
        num_available=n,
    )
    return replace(eval_result(), tasks={"clouds": task}, groups={}, **options)


COLLAPSED = (
    "clouds: A is answered to 80 of 80 questions, of 20 of which it is the right choice: this accuracy tells how often"
    " that letter is right, not what the model knows"
)


def test_one_letter_is_told_of_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    collapsed, fair = result_of(0.0, 30.0, model_name="org/a"), result_of(0.0, 0.0, model_name="org/b")
    assert collapsed.letter_notes() == [COLLAPSED]
    assert COLLAPSED in collapsed.table()
    recorded = collapsed.to_json()["wmdp_fast"]
    assert recorded["warnings"] == [COLLAPSED]
    assert recorded["tasks"]["clouds"]["one_letter"] == {"letter": "A", "predicted": 80, "right": 20, "n": 80}
    assert fair.letter_notes() == []
    assert fair.to_json()["wmdp_fast"]["warnings"] == []
    assert "one_letter" not in fair.to_json()["wmdp_fast"]["tasks"]["clouds"]

    for name, result in (("a", collapsed), ("b", fair)):
        result.save(tmp_path / name, log_samples=True)
    assert cli.main(["show", str(tmp_path / "a"), "--ascii"]) == 0
    assert f"warning: {COLLAPSED}" in capsys.readouterr().out
    assert cli.main(["compare", str(tmp_path / "b"), str(tmp_path / "a")]) == 0
    assert f"after: {COLLAPSED}" in capsys.readouterr().out
    saved = [from_evaluation(one) for one in (fair, collapsed)]
    assert f"after: {COLLAPSED}" in gather(saved).warnings
    # Told once, though the results say it too.
    assert gather(saved[1:]).warnings.count(COLLAPSED) == 1
    assert json.loads(json.dumps(rescore(saved[1]).to_json()))["tasks"]["clouds"]["one_letter"]["predicted"] == 80


@pytest.fixture
def answers_a(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A model that answers A to everything, and the file `birds` to ask it, as arguments of `eval`."""
    tiny_models.build("llama").save_pretrained(tmp_path / "model")
    tiny_models.tokenizer().save_pretrained(tmp_path / "model")
    rows = [{"question": f"Is {i}?", "choices": list("wxyz"), "answer": i % 4} for i in range(20)]
    questions = tmp_path / "birds.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task_results = evaluation_run.task_results

    def preferring(read: Any, prompts: Any, scores: Any, **options: Any) -> Any:
        scores.loglikelihood[::4] += 100.0
        return task_results(read, prompts, scores, **options)

    monkeypatch.setattr(evaluation_run, "task_results", preferring)
    return [str(tmp_path / "model"), "--tasks", str(questions)]


BIRDS = "birds: A is answered to 20 of 20 questions, of 5 of which"


def test_evaluate_warns(answers_a: list[str]) -> None:
    model, _, questions = answers_a
    with pytest.warns(WmdpFastWarning, match=BIRDS):
        wf.evaluate(model, tasks=questions, device="cpu", progress=False)


@printed(".*is answered to")
def test_a_terminal_shows_it_once(answers_a: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*answers_a[1:], "--device", "cpu", "--quiet", "--output", str(tmp_path / "results")]
    model = answers_a[0]
    other = shutil.copytree(model, tmp_path / "other")
    # Below the table, where the numbers go; also of several models, and of results that are read back.
    shown = []
    for more in ([], ["--resume"], [str(other), "--resume"]):
        assert cli.main(["eval", model, *more, *options]) == 0
        out, err = capsys.readouterr()
        assert (out.count(BIRDS), err.count(BIRDS)) == (1 + (len(more) > 1), 0)
        shown.append(out)
    assert shown[0] == shown[1]
    # JSON has no table, but a list of warnings.
    for more in ([], ["--resume"]):
        assert cli.main(["eval", model, *more, *options, "--json"]) == 0
        out, err = capsys.readouterr()
        assert err.count(BIRDS) == 1
        assert json.loads(out)["wmdp_fast"]["warnings"][-1].startswith(BIRDS)


def test_a_table_that_is_read_back_has_what_stood_below_it(tmp_path: Path) -> None:
    result = replace(result_of(0.0, 30.0), near_tie=0.5)
    saved = wf.read_results(result.save(tmp_path))
    assert COLLAPSED in result.table()
    assert saved.table() == result.table()
    # What is not as this package writes it is named, and not shown.
    content = json.loads(saved.path.read_text(encoding="utf-8"))
    content["wmdp_fast"]["tasks"]["clouds"]["one_letter"]["predicted"] = "all"
    saved.path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(wf.DatasetError, match=r"wmdp_fast.tasks.clouds.one_letter.*predicted"):
        wf.read_results(saved.path)


def test_many_tasks_are_told_of_together() -> None:
    one = letters.Collapse(letter="A", predicted=80, right=20, n=80)
    notes = letters.letter_notes({f"task_{i}": one for i in range(9)})
    assert notes[0].startswith("9 tasks (task_0, task_1, task_2 and 6 more) are answered with one letter (A) to more")


@pytest.mark.parametrize(
    ("predicted", "gold", "told"),
    [
        ([0] * 19 + [1], [0, 1] * 10, True),
        ([0] * 18 + [1, 1], [0, 1] * 10, False),
        # Of few questions it may be chance; and where the answer is A, A is the answer.
        ([0] * 9, [0, 1, 2] * 3, False),
        ([0] * 20, [0] * 20, False),
        ([0] * 20, [0] * 19 + [1], False),
        ([2] * 20, [0] * 20, True),
    ],
)
def test_when_one_letter_is_told_of(predicted: list[int], gold: list[int], told: bool) -> None:
    found = letters.collapse(np.array(predicted), np.array(gold))
    assert (found is not None) == told


def test_knowledge_below_a_preferred_letter_is_seen() -> None:
    knowing = rescore(from_evaluation(result_of(2.0, 30.0))).tasks["clouds"]
    plain = rescore(from_evaluation(result_of(2.0, 0.0))).tasks["clouds"]
    assert knowing.metrics["acc"].value == 0.25
    # The preference is subtracted again, whatever it is: what the same model without it answers right.
    assert knowing.letters.calibrated is not None
    assert plain.letters.calibrated is not None
    assert knowing.letters.calibrated.value == plain.letters.calibrated.value > 0.6
    assert knowing.letters.rank is not None
    assert knowing.letters.rank.p < 1e-6
    assert knowing.letters.rank.z > 4
    assert knowing.like_guessing is False
    told = statistics.guessing_text(knowing)
    assert told is not None
    assert told.startswith("the accuracy is that of guessing, but the right choices rank higher")

    said = "not distinguishable from guessing, by accuracy and by the right choices' ranks"
    for n, more in ((200, ""), (80, "; of so few questions it may as well be 0.35")):
        ignorant = rescore(from_evaluation(result_of(0.0, 30.0, n))).tasks["clouds"]
        assert ignorant.like_guessing is True
        told = statistics.guessing_text(ignorant)
        assert told is not None
        assert told.startswith(said)
        assert told.endswith(more)
        assert (told == said) == (n == 200)


def test_calibrated_accuracy_is_what_its_definition_says() -> None:
    saved = from_evaluation(result_of(1.0, 2.0))
    task = saved.tasks["clouds"]
    scores = task.loglikelihood_matrix()
    assert task.samples is not None
    gold = task.samples.gold
    # Each question by the means over all others, in probabilities among the choices.
    logs = scores - np.log(np.exp(scores - scores.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True))
    others = [np.delete(logs, i, axis=0).mean(axis=0) for i in range(len(logs))]
    expected = np.mean([(logs[i] - others[i]).argmax() == gold[i] for i in range(len(logs))])
    found = statistics.letters_of([task]).calibrated
    assert found is not None
    assert found.value == pytest.approx(expected)


def test_show_compare_and_the_report_tell_of_ranks() -> None:
    before, after = (from_evaluation(result_of(knowledge, 30.0)) for knowledge in (2.0, 0.8))
    shown = "\n".join(lines(after, rescore(after), confidence=0.95, ascii_only=True))
    assert "clouds: letter-calibrated accuracy 0." in shown
    assert "clouds: the accuracy is that of guessing, but the right choices rank higher" in shown
    [contrast] = compare(before, after).contrasts
    [row] = contrast.rows
    assert row.letters_before.calibrated is not None
    assert row.letters_after.calibrated is not None
    assert row.letters_before.calibrated.value > row.letters_after.calibrated.value > 0.3
    assert "without preferred letters" in compare(before, after).table()
    standings = gather([before, after]).rows[0].standings
    assert [standing and standing.place for standing in standings] == ["unclear", "unclear"]
    # Without knowledge it is at guessing, but not if one letter is all it answers: that is no way to ask.
    for preference, place in ((0.0, "at"), (30.0, "unclear")):
        ignorant = from_evaluation(result_of(0.0, preference))
        assert [one and one.place for one in gather([ignorant]).rows[0].standings] == [place]


def test_impossible_choices_and_few_questions_have_no_letters() -> None:
    few = statistics.letters_of([from_evaluation(result_of(1.0, 0.0, n=8)).tasks["clouds"]])
    assert few.calibrated is None
    assert few.rank is not None
    assert statistics.rank_test([(np.array([[0.0, np.nan], [1.0, 0.0]]), np.array([0, 1]))]) is None
