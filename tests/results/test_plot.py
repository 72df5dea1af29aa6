"""Figures of results: what is drawn is what the results say."""

from __future__ import annotations

import pytest

pytest.importorskip("matplotlib", reason="needs the extra `plots`")

from matplotlib import pyplot as plt

import wmdp_fast as wf
from wmdp_fast import _rust, demo
from wmdp_fast.unlearning.plot import plot_metrics


@pytest.fixture(autouse=True)
def _no_display_and_no_figures_left():
    with plt.rc_context({"backend": "agg"}):
        yield
        plt.close("all")


def test_accuracies_are_drawn_with_their_intervals_and_guessing():
    result = wf.evaluate(demo.model_path(), tasks=demo.questions_path("forget"), limit=12, progress=False)
    [task] = result.tasks.values()
    axes = result.plot()
    assert [label.get_text() for label in axes.get_yticklabels()] == [task.alias]
    chances, accuracies = axes.lines[0], axes.lines[1]
    assert list(chances.get_xdata()) == [0.25]
    assert list(accuracies.get_xdata()) == [task["acc"]]
    low, high = _rust.wilson(round(task["acc"] * 12), 12)
    [[start, end]] = axes.collections[0].get_segments()
    assert (start[0], end[0]) == pytest.approx((low, high))


def test_a_figure_goes_onto_axes_that_are_given():
    result = wf.evaluate(demo.model_path(), tasks=demo.questions_path("forget"), limit=4, progress=False)
    _, (_, right) = plt.subplots(1, 2)
    assert result.plot(right) is right
    assert len(plt.get_fignums()) == 1


def test_what_a_run_measured_is_drawn_over_its_steps():
    config = wf.RMUConfig(layer_id=2, max_steps=3, max_length=32, retain_max_length=32)
    corpora = {domain: demo.corpus_path(domain) for domain in ("forget", "retain")}
    with pytest.warns(wf.WmdpFastWarning, match="unlearned nothing"):
        result = wf.unlearn(demo.model_path(), **corpora, config=config, progress=False)
    axes = result.plot()
    assert [line.get_label() for line in axes.lines] == ["forget_loss", "retain_loss"]
    for line in axes.lines:
        assert list(line.get_xdata()) == [row["step"] for row in result.metrics]
        assert list(line.get_ydata()) == [row[line.get_label()] for row in result.metrics]
    with pytest.raises(ValueError, match=r"no step measured loss; there are .*forget_loss"):
        result.plot("loss")


def test_evaluations_between_steps_have_gaps_and_large_spans_a_logarithmic_scale():
    metrics = [{"step": 1, "forget_loss": 1.0}, {"step": 1, "accuracy": 0.5}, {"step": 2, "forget_loss": 100.0}]
    axes = plot_metrics(metrics, ["forget_loss"], None, "run")
    assert axes.get_yscale() == "log"
    assert list(axes.lines[0].get_xdata()) == [1, 2]
    with pytest.raises(ValueError, match="there are no steps"):
        plot_metrics([], ["forget_loss"], None, "run")
