"""Accuracy by step: which models are checkpoints of one run, and what is drawn of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("matplotlib", reason="needs the extra `plots`")

import wmdp_fast
from wmdp_fast import demo
from wmdp_fast.report.gather import gather
from wmdp_fast.report.page import render
from wmdp_fast.results.saved import SavedResults, read_results


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> SavedResults:
    """Results with samples."""
    result = wmdp_fast.evaluate(demo.model_path(), tasks=demo.questions_path("forget"), limit=12, progress=False)
    return read_results(result.save(tmp_path_factory.mktemp("results"), log_samples=True))


def called(saved: SavedResults, name: str, **arguments: str) -> SavedResults:
    return replace(saved, model_name=name, settings={**saved.settings, "model_args": arguments})


def test_checkpoints_are_drawn_by_their_steps_whatever_their_order(saved):
    names = ("base", "run/checkpoint-1000", "run/checkpoint-20", "run/checkpoint-300")
    report = gather([called(saved, name) for name in names])
    [plot] = report.by_step
    top = [row for row in report.rows if row.depth == 0]
    assert [curve.name for curve in plot.curves] == [row.label for row in top]
    for curve, row in zip(plot.curves, top, strict=True):
        accuracy = row.accuracies[0]
        assert curve.steps == [20, 300, 1000]
        assert curve.values == [accuracy.value] * 3
        assert curve.intervals == [(accuracy.low, accuracy.high)] * 3
    page = render(report)
    assert page.count("Accuracy by step") >= 1
    assert "Accuracy by step" not in render(gather([called(saved, "base"), called(saved, "other")]))


@pytest.mark.parametrize(
    "models",
    [
        [("owner/model", {"revision": "step1000"}), ("owner/model", {"revision": "step20"})],
        [("base", {"peft": "run/checkpoint-1000"}), ("base", {"peft": "run/checkpoint-20"})],
    ],
    ids=["revisions", "adapters"],
)
def test_steps_are_found_in_revisions_and_adapters(saved, models):
    [plot] = gather([called(saved, name, **arguments) for name, arguments in models]).by_step
    assert {tuple(curve.steps) for curve in plot.curves} == {(20, 1000)}


def test_what_lm_eval_was_given_on_its_command_line_is_read_too(saved):
    runs = [
        replace(saved, settings={**saved.settings, "model_args": f"pretrained=m,revision=step{step}"})
        for step in (7, 9)
    ]
    assert gather(runs).by_step[0].curves[0].steps == [7, 9]


@pytest.mark.parametrize(
    "names",
    [
        ("run/checkpoint-20", "another/checkpoint-30"),
        ("run/checkpoint-20", "run/checkpoint-20"),
        ("base", "run/checkpoint-20"),
    ],
    ids=["two runs", "one step asked twice", "one checkpoint"],
)
def test_other_models_have_no_figure_by_step(saved, names):
    assert gather([called(saved, name) for name in names]).by_step == []
