"""What every benchmark reports: the work, our figures, the baselines' figures in the same run, and the ratios."""

from __future__ import annotations

import contextlib
import re
import resource
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from wmdp_fast.runtime import environment
from wmdp_fast.runtime.tables import in_columns

# Seconds that are shown as more than 0.
_SHOWN = 0.0005


@dataclass(frozen=True)
class Measurement:
    """Figures of one worker.

    Attributes:
        seconds: Wall time by phase, and `total`.
        units: How much work was done, in the units of the benchmark (questions, tokens, steps).
        per_second: Units per second of the total.
        peak_gb: Peak resident memory of the process in 10^9 bytes, or None where it cannot be told apart.
        gpu_peak_gb: Peak memory of tensors on the GPU, likewise, if it is not what `peak_gb` is already.
        notes: Anything else worth knowing, such as the engine used.
    """

    seconds: dict[str, float]
    units: dict[str, int]
    per_second: dict[str, float]
    peak_gb: float | None = None
    gpu_peak_gb: float | None = None
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BenchReport:
    """A benchmark's outcome; `to_json` is the one object that `--json` prints.

    Attributes:
        work: What was run, on what, with which versions.
        ours: This package's figures.
        baselines: Each baseline's figures by name.
        ratio: For each baseline and phase, its seconds per unit over ours: above 1 means this package is faster.
        failures: What must not be, such as other numbers than a baseline's; the command then exits with 1.
    """

    work: dict[str, Any]
    ours: Measurement
    baselines: dict[str, Measurement] = field(default_factory=dict)
    ratio: dict[str, dict[str, float]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The report as plain objects; `baselines` are under `peers` there, the name that saved reports have."""
        return {"peers" if name == "baselines" else name: value for name, value in asdict(self).items()}

    def table(self) -> str:
        """The report as text: one line a phase, one column a worker."""
        lines = [f"{key}: {value}" for key, value in self.work.items() if not isinstance(value, dict)]
        rows = self._rows()
        return "\n".join([*lines, "", *in_columns(rows, "l" + "r" * (len(rows[0]) - 1))])

    def markdown(self) -> str:
        """The report as a page: the work, the table, then hardware and versions."""
        rows = self._rows()
        table = [f"| {' | '.join(row)} |" for row in rows]
        table.insert(1, "|" + " --- |" + " ---: |" * (len(rows[0]) - 1))
        hardware = self.work["machine"]["hardware"]
        versions = {name: version for name, version in self.work["machine"]["versions"].items() if version}
        listed = {key: value for key, value in self.work.items() if not isinstance(value, dict)}
        failures = [f"\n**Failed:** {failure}" for failure in self.failures]
        return "\n".join(
            [
                f"# bench {self.work['benchmark']}, {time.strftime('%Y-%m-%d')}",
                *failures,
                "",
                *_items(listed),
                "",
                *table,
                "",
                "## Hardware",
                "",
                *_items(hardware),
                "",
                "## Versions",
                "",
                *_items(versions),
                "",
            ]
        )

    def _rows(self) -> list[list[str]]:
        phases = list(
            dict.fromkeys([*self.ours.seconds, *(p for baseline in self.baselines.values() for p in baseline.seconds)])
        )
        header = ["phase", "wmdp-fast", *self.baselines, *(f"ratio to {name}" for name in self.baselines)]
        rows = [
            [
                phase,
                _seconds(self.ours.seconds.get(phase)),
                *(_seconds(baseline.seconds.get(phase)) for baseline in self.baselines.values()),
                *(_ratio(self._ratio_of(name, phase)) for name in self.baselines),
            ]
            for phase in phases
        ]
        for unit, rate in self.ours.per_second.items():
            theirs = [baseline.per_second.get(unit) for baseline in self.baselines.values()]
            rows.append([f"{unit}/s", _rate(rate), *map(_rate, theirs), *("" for _ in self.baselines)])
        baselines = self.baselines.values()
        rows += _peaks("peak memory", self.ours.peak_gb, [baseline.peak_gb for baseline in baselines])
        rows += _peaks("GPU tensors, peak", self.ours.gpu_peak_gb, [baseline.gpu_peak_gb for baseline in baselines])
        return [header, *rows]

    def _ratio_of(self, baseline: str, phase: str) -> float | None:
        """A ratio that is worth showing: what takes us less than is shown would be anything times as fast."""
        ours = self.ours.seconds.get(phase)
        return None if ours is not None and ours < _SHOWN else self.ratio.get(baseline, {}).get(phase)


def _peaks(name: str, ours: float | None, theirs: list[float | None]) -> list[list[str]]:
    """The row for a kind of memory, if it was measured."""
    if ours is None:
        return []
    ratios = (_ratio(gb and gb / ours) for gb in theirs)
    return [[name, *("" if gb is None else f"{gb:.2f} GB" for gb in [ours, *theirs]), *ratios]]


def _items(facts: dict[str, Any]) -> list[str]:
    return [f"- {key}: {value}" for key, value in facts.items()]


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3f} s"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}x"


def machine() -> dict[str, Any]:
    """Hardware and versions; GPUs are seen once torch is imported."""
    return {"hardware": environment.hardware(), "versions": environment.versions()}


def peak_gb() -> float:
    """Peak resident memory of this process in 10^9 bytes."""
    with contextlib.suppress(OSError):
        # What getrusage says of a young process can be its parent's.
        if found := re.search(
            r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"), re.MULTILINE
        ):
            return int(found[1]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
