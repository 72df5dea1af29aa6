"""What a benchmark's report shows."""

from __future__ import annotations

from wmdp_fast.bench.report import BenchReport, Measurement


def measured(**seconds: float) -> Measurement:
    return Measurement(seconds=seconds, units={"questions": 20}, per_second={"questions": 50.0})


def test_a_phase_that_takes_nothing_has_no_ratio() -> None:
    report = BenchReport(
        {"benchmark": "eval"},
        measured(render=0.0003, forward=0.4),
        {"lm-eval": measured(render=0.5, forward=0.8)},
        {"lm-eval": {"render": 1666.7, "forward": 2.0}},
    )
    rows = {line.split()[0]: line.split() for line in report.table().splitlines() if line.endswith(("s", "x"))}
    assert rows["render"] == ["render", "0.000", "s", "0.500", "s"]
    assert rows["forward"][-1] == "2.0x"
    # Who computes with it has it.
    assert report.to_json()["ratio"]["lm-eval"]["render"] == 1666.7
