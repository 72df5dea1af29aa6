"""Attacks on a page: worst case first, curves, and what may be claimed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="needs the extra `plots`")
pytest.importorskip("jinja2", reason="needs the extra `plots`")

import wmdp_fast as wf
from tests.support import attack_records, saved_runs
from tests.support.attack_records import reading, run
from wmdp_fast import cli
from wmdp_fast.report.attacks import gather_attacks
from wmdp_fast.robustness.card import attacks_section
from wmdp_fast.robustness.claims import claims, outcome
from wmdp_fast.robustness.retained.measure import Measured

if TYPE_CHECKING:
    from pathlib import Path

    from wmdp_fast.robustness.result import AttackResult


def attacked(ask: float = 0.26, worst: float = 0.7) -> AttackResult:
    """Attacks with steps, with layers, and with accuracies by layer that were measured by the attack."""
    result = attack_records.attacked("org/rmu", ask, worst)
    layers = [replace(reading(ask), figures={"layer": layer}) for layer in range(3)]
    probe = replace(reading(ask), figures={"by_layer": {"reported": [0.3, 0.5], "shuffled": [0.25, 0.26]}})
    runs = [run("unlearned", "lens", *layers), run("unlearned", "probe", probe)]
    return replace(result, runs=[*result.runs, *runs])


def test_the_attack_that_brings_back_most_comes_first_and_curves_have_intervals() -> None:
    shown = gather_attacks(attacked(), "rmu")
    assert [row.attack for row in shown.rows] == ["relearn", "ask", "lens", "probe"]
    plots = {plot.title: plot for plot in shown.plots}
    assert set(plots) == {"relearn by step", "lens by layer", "probe by layer"}
    relearn = plots["relearn by step"]
    assert [curve.name for curve in relearn.curves] == ["unlearned"]
    assert (relearn.curves[0].steps, relearn.curves[0].values) == ([0, 50], [26.0, pytest.approx(70.0)])
    low, high = wf._rust.wilson(140, 200)
    assert relearn.curves[0].intervals[1] == (pytest.approx(100 * low), pytest.approx(100 * high))
    assert plots["lens by layer"].axis == "layer"
    assert [curve.name for curve in plots["probe by layer"].curves] == ["reported", "shuffled"]
    assert "Not run on unlearned: gcg: it needs a target: pass --target." in shown.notes


def measured() -> list[Measured]:
    """KL and perplexity of two models, a keyword, what one writes and MT-Bench; text on the neighborhood failed."""
    text = {"loglikelihood": [-30.0, -50.0, -20.0], "tokens": [20, 25, 12]}
    wrote = {"tokens": [9, 8], "pairs": 15, "different_pairs": 12, "fours": [6, 5], "repeated_fours": [3, 0]}
    wrote |= {"characters": [40, 30], "not_ascii": [0, 1], "empty": [0, 0], "refusal": [1, 0]}
    return [
        Measured(
            role="unlearned", kind="distance", name="general text", identity={}, found=text | {"kl": [1.0, 3.0, 0.5]}
        ),
        Measured(role="base", kind="distance", name="general text", identity={}, found=text),
        Measured(role="unlearned", kind="distance", name="near text", identity={}, failed="too long"),
        Measured(
            role="unlearned",
            kind="keyword",
            name="<i>virus",
            identity={"questions": "q"},
            found={"plain": "1110", "keyword": "1000"},
        ),
        Measured(role="unlearned", kind="writing", name="w", identity={}, found={"far": wrote}),
        Measured(
            role="unlearned", kind="mt_bench", name="judge", identity={}, found={"scores": [[8, 7], [None, 6], [3, 4]]}
        ),
    ]


def test_what_was_to_be_kept_is_drawn_and_what_is_missing_is_said(tmp_path: Path) -> None:
    result = replace(attacked(), measured=measured())
    shown = {one.title: one for one in gather_attacks(result, "rmu").levels}
    assert list(shown) == [
        "Perplexity",
        "Divergence from the base",
        "Utility questions with a keyword",
        "What the models write",
        "MT-Bench",
    ]
    kl = shown["Divergence from the base"]
    assert kl.models == [("after", "unlearned"), ("before", "base")]
    [mine, base] = kl.rows["KL from the base, general text"]
    assert mine.value == pytest.approx(4.5 / 57)
    assert mine.ends is not None
    assert (base.value, base.text) == (None, "n/a: it is the base")
    assert kl.note == "perplexity, near text; KL from the base, near text: not run (too long)."
    accuracies = shown["Utility questions with a keyword"].rows
    assert [row[0].value for row in accuracies.values()] == [75.0, 25.0]
    assert [row[1].text for row in accuracies.values()] == ["not run"] * 2
    written = shown["What the models write"].rows
    assert written["repetition, far prompts"][0].value == pytest.approx(100 * 3 / 11)
    assert written["distinct-2, far prompts"][0].ends is None
    note = shown["What the models write"].note
    assert note.startswith("repetition, forget prompts; distinct-2, forget prompts; ")
    assert "not run (there is no forget text: pass --forget)." in note
    [[judged, _]] = shown["MT-Bench"].rows.values()
    assert judged.value == pytest.approx(28 / 5)
    result.save(tmp_path)
    assert cli.main(["report", str(tmp_path), "--output", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for place in range(5):
        assert f'<figure aria-labelledby="kept-0-{place}-heading">' in page
    assert "&lt;i&gt;virus" in page
    assert "<i>virus" not in page


def test_claims_say_no_more_than_the_intervals() -> None:
    assert outcome(attacked()) == "comes back"
    assert outcome(attacked(0.26, 0.27)) == "resists"
    assert outcome(attacked(0.7, 0.7)) == "no more than asking"
    few = attacked(0.26, 0.27)
    assert outcome(replace(few, is_for_choosing=np.arange(attack_records.N) % 20 > 0)) == "unclear"
    assert outcome(replace(few, runs=[one for one in few.runs if one.attack == "ask"])) is None
    told = claims(attacked())
    assert told[0] == "Attackers who can only ask: not tried, so nothing may be claimed."
    assert any(one.startswith("Attackers who have the weights (relearn): does not resist") for one in told)
    assert "does not resist these: 70.0 %" in " ".join(told)
    assert told[-1].endswith("for no other attack, and not that knowledge is removed.")
    assert "removed" not in " ".join(told[:-1])


def test_what_unlearning_has_cost_is_told_without_an_attack() -> None:
    result = attacked()
    low, high = wf._rust.wilson(60, 100)
    cell = f"0.600 [{low:.3f}, {high:.3f}]"
    assert result.kept_rows()[0] == ("utility: mmlu_virology", [cell, cell])
    assert any("utility: mmlu_virology" in line and line.count(cell) == 2 for line in str(result).splitlines())
    assert f"| utility: mmlu_virology | {cell} | {cell} |" in attacks_section(result)
    assert gather_attacks(result, "rmu").kept[0] == ("utility: mmlu_virology", [cell, cell])
    # Of several tasks each, and texts.
    several = {"acc": 0.5, "acc mmlu_virology": 0.6, "acc mmlu_law": 0.4, "bits_per_byte prose": 1.25}
    asked = [
        replace(one, readings=(replace(one.readings[0], utility=several),)) if one.attack == "ask" else one
        for one in result.runs
    ]
    shown = dict(replace(result, runs=asked, utility_tasks={"mmlu_virology": 100, "mmlu_law": 100}).kept_rows())
    assert list(shown)[:3] == ["utility: 2 tasks together", "utility: mmlu_virology", "utility: mmlu_law"]
    assert shown["utility: mmlu_virology"][0] == cell
    assert shown["utility: bits per byte prose"][0] == "1.2500"


def with_base(result: AttackResult, accuracy: float) -> AttackResult:
    """The same beside a base with that accuracy, asked as it is and under the attack."""
    runs = [
        replace(one, readings=(reading(accuracy, 0.6),)) if one.role == "base" and one.readings else one
        for one in result.runs
    ]
    return replace(result, runs=runs)


def test_where_the_base_may_guess_nothing_is_said_to_resist() -> None:
    guessing = with_base(attacked(0.26, 0.27), 0.27)
    assert outcome(guessing) == "nothing to bring back"
    assert "the base is not told from guessing either" in " ".join(claims(guessing))
    assert "resists" not in " ".join(claims(guessing))
    assert "so there was nothing to bring back" in guessing.claim()
    # What comes back all the same was there, or was taught.
    assert outcome(with_base(attacked(0.26, 0.7), 0.27)) == "comes back"
    knowing = attacked(0.26, 0.27)
    assert "nothing to bring back" not in knowing.claim()
    assert "without a base" not in claims(knowing)[-1]
    alone = replace(
        knowing,
        models={"unlearned": knowing.models["unlearned"]},
        runs=[one for one in knowing.runs if one.role == "unlearned"],
    )
    assert outcome(alone) == "resists"
    assert "without a base, so that what there was to bring back is not known" in claims(alone)[-1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("reported")
    for name, worst in (("rmu", 0.7), ("npo", 0.3)):
        (made / name).mkdir()
        result = attacked(0.26, worst)
        replace(result, models={**result.models, "unlearned": f"<b>{name}"}).save(made / name)
    saved_runs.our_run(made / "before", "base")
    saved_runs.our_run(made / "after", "unlearned")
    return made


def test_a_report_takes_attacks_beside_evaluations(folder: Path, tmp_path: Path) -> None:
    paths = [str(folder / name) for name in ("before", "after", "rmu")]
    assert cli.main(["report", *paths, "--output", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<section id="attacks"' in page
    assert "Not to relearn" in page
    assert "No fine-tuning, pruning" not in page
    assert "What may be claimed" in page
    assert "&lt;b&gt;rmu" in page or "<b>rmu" not in page


def test_attacks_alone_and_tables_are_a_page_too(folder: Path, tmp_path: Path) -> None:
    paths = [str(folder / name) for name in ("rmu", "npo")]
    assert cli.main(["report", *paths, "--output", str(tmp_path / "report.html")]) == 0
    assert cli.main(["table", *paths, "--html", str(tmp_path / "table.html")]) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page == (tmp_path / "table.html").read_text(encoding="utf-8")
    for told in ("Side by side", "&lt;b&gt;npo", "70.0 [", "not run", "p (Holm)"):
        assert told in page
    assert "<b>npo" not in page


def test_options_of_evaluations_are_refused_where_there_are_none(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "report.html"
    assert cli.main(["report", str(folder / "rmu"), "--names", "mine", "--forget", "wmdp", "--output", str(page)]) != 0
    assert "--names, --forget need results of `wmdp-fast eval`" in capsys.readouterr().err
    assert not page.exists()
