"""`wmdp-fast show`: saved results in the terminal, with intervals against chance and small bars."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from wmdp_fast import _rust
from wmdp_fast.analysis.contrast_table import probability_text
from wmdp_fast.analysis.rescoring import rescore
from wmdp_fast.analysis.statistics import guessing_text
from wmdp_fast.cli.options import share
from wmdp_fast.exceptions import DatasetError
from wmdp_fast.results.letters import letter_notes
from wmdp_fast.results.perplexity import METRICS
from wmdp_fast.results.saved import RECOMPUTABLE, SavedTask, read_runs
from wmdp_fast.runtime.tables import aligned, number_text

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from wmdp_fast.analysis.rescoring import Rescored
    from wmdp_fast.analysis.statistics import Description
    from wmdp_fast.results.saved import SavedGroup, SavedResults

SUMMARY = "Show saved results in the terminal: intervals, distance from chance, bars, near-ties, letter bias."

# Characters of a bar.
_WIDTH = 24

# What is said of how a model was run, in this order, if it was recorded.
_SETTINGS = (
    ("dtype", "model_dtype"),
    ("device", "device"),
    ("batch", "batch_size"),
    ("limit", "limit"),
    ("scores", "score_mode"),
    ("prompts of lm-eval", "lm_eval_compat"),
    ("chat template", "chat_template"),
    ("system instruction", "system_instruction"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `wmdp-fast show`."""
    parser.add_argument(
        "results",
        metavar="RESULTS",
        help="a results file or folder of this package or of lm-eval; a folder of several models' results; or what"
        " `unlearn` wrote",
    )
    parser.add_argument(
        "--confidence", type=share, default=0.95, metavar="C", help="confidence level of the intervals (default 0.95)"
    )
    parser.add_argument("--ascii", action="store_true", help="draw bars with plain ASCII")


def run(arguments: argparse.Namespace) -> int:
    """Prints the results."""
    plain = arguments.ascii or plain_terminal()
    record = Path(arguments.results) / "unlearn.json"
    if record.is_file():
        print(*_unlearned(record), sep="\n")
    found = []
    try:
        found = read_runs(arguments.results)
    except FileNotFoundError:
        # A run need not have been evaluated.
        if not record.is_file():
            raise
    for place, results in enumerate(found, start=int(record.is_file())):
        rescored = rescore(results, confidence=arguments.confidence) if results.has_samples else None
        shown = lines(results, rescored, confidence=arguments.confidence, ascii_only=plain)
        print(*([""] if place else []), *shown, sep="\n")
        for mismatch in rescored.mismatches if rescored else ():
            print(f"warning: {mismatch}", file=sys.stderr)
    return 0


def _unlearned(path: Path) -> Iterator[str]:
    """What an unlearning run was, and what it says of itself.

    Raises:
        DatasetError: The file is not what a run writes.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        name, base = record["method"], record["base"]["name"]
        yield f"{record['name']}: {base} after {record['best_step']} steps of {name}"
        if record["stopped"] is not None:
            yield f"stopped {record['stopped']}"
        if (budget := record.get("budget")) is not None:
            text, most = budget["text"], budget["max_kl"]
            yield f"KL from the original on {text['name']}: {budget['kl']:.4g} nats per token, of at most {most:g}"
        if record["verdict"] is not None:
            yield f"warning: {record['verdict']}"
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(str(path), f"is not what a run of unlearning writes ({error!r})") from error


def plain_terminal() -> bool:
    """Whether stdout should get plain ASCII: NO_COLOR is set, the terminal is dumb, or the encoding has no blocks."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return True
    try:
        "█▏│±·".encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return True
    return False


def lines(results: SavedResults, rescored: Rescored | None, *, confidence: float, ascii_only: bool) -> Iterator[str]:
    """What `show` prints, line by line."""
    yield f"{results.model_name}  ({results.made_by})"
    if results.path is not None:
        newest = f", the newest of {results.newest_of}" if results.newest_of > 1 else ""
        yield f"{results.path}{newest}"
    yield ""
    yield from _table(results, rescored, confidence, ascii_only=ascii_only)
    yield ""
    if rescored is not None:
        yield from _about_questions(results, rescored)
    elif any(task.documents is None for task in results.tasks.values()):
        yield "no samples were saved (--log-samples): intervals follow from counts, single questions are unknown"
    if settings := _settings(results):
        yield f"settings: {settings}"
    if seconds := results.extra.get("seconds"):
        spent = ", ".join(f"{phase} {value:.1f}" for phase, value in seconds.items())
        yield f"seconds: {spent}"
    elif total := results.raw.get("total_evaluation_time_seconds"):
        yield f"seconds: {float(total):.1f} in all"


def bar(value: float, mark: float | None, width: int = _WIDTH, *, ascii_only: bool = False) -> str:
    """A bar from 0 to 1 with a mark, for instance at chance.

    Eighths of a character are drawn where Unicode blocks may be; the mark takes the place of what is below it.
    """
    eighths = round(max(0.0, min(1.0, value)) * width * 8)
    full, rest = divmod(eighths, 8)
    if ascii_only:
        cells = list("#" * full + ("-" if rest >= 4 else ""))
    else:
        cells = list("█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else ""))
    cells += [" "] * (width - len(cells))
    if mark is not None:
        cells[min(width - 1, int(mark * width))] = "|" if ascii_only else "│"
    return "".join(cells)


def _table(results: SavedResults, rescored: Rescored | None, confidence: float, *, ascii_only: bool) -> list[str]:
    rows: list[tuple[str, ...]] = [
        ("task", "n", "metric", "value", f"{confidence:.0%} interval", "chance", "z", "p", "")
    ]
    for one, depth in results.hierarchy():
        rows += _rows("  " * depth, one, _description(rescored, one.name), confidence, ascii_only=ascii_only)
    return aligned(rows, "lrlrrrrrl")


def _description(rescored: Rescored | None, name: str) -> Description | None:
    if rescored is None:
        return None
    return rescored.tasks.get(name) or rescored.groups.get(name)


def _rows(
    indent: str,
    one: SavedTask | SavedGroup,
    description: Description | None,
    confidence: float,
    *,
    ascii_only: bool,
) -> Iterator[tuple[str, ...]]:
    lead = (indent + one.alias, "" if one.n is None else str(one.n))
    if not one.metrics:
        yield (*lead, *[""] * 7)
    for metric, value in one.metrics.items():
        interval = ""
        if description is not None and metric in description.metrics:
            estimate = description.metrics[metric]
            interval = f"{estimate.low:.4f} to {estimate.high:.4f}"
        elif isinstance(one, SavedTask) and one.documents is not None and metric in METRICS:
            if (ends := one.documents.interval(metric, confidence)) is not None:
                interval = f"{number_text(ends[0])} to {number_text(ends[1])}"
        elif metric in RECOMPUTABLE and one.n:
            low, high = _rust.wilson(round(value * one.n), one.n, confidence=confidence)
            interval = f"{low:.4f} to {high:.4f}"
        chance = description.chance if description is not None else None
        compared = ("", "", "")
        if chance is not None and metric == "acc":
            compared = (f"{chance.share:.2f}", f"{chance.z:+.1f}", probability_text(chance.p))
        # Choices of other lengths make chance another for the other metrics; it is not known.
        mark = chance.share if chance is not None and metric == "acc" else None
        drawn = bar(value, mark, ascii_only=ascii_only) if metric in RECOMPUTABLE else ""
        yield (*lead, metric, number_text(value), interval, *compared, drawn)
        lead = (indent and " " * len(indent), "")


def _about_questions(results: SavedResults, rescored: Rescored) -> Iterator[str]:
    described = list(rescored.tasks.values())
    total = sum(one.n for one in described)
    near = sum(one.near_ties for one in described)
    ties = sum(one.ties for one in described)
    yield (
        f"near-ties: {near} of {total} predictions have their two best choices within {described[0].near_tie:g} nats;"
        f" {ties} of them are equal to the last bit"
    )
    if repeated := sum(_repeated(task) for task in results.tasks.values()):
        yield (
            f"repeated: {repeated} of {total} questions are in their task before, with the same prompt and answer; each"
            " time counts, and intervals take it for another question"
        )
    for one, depth in results.hierarchy():
        description = _description(rescored, one.name)
        if depth or description is None:
            continue
        if description.calibration is not None:
            found = description.calibration
            yield f"{one.alias}: calibration error {found.ece:.4f}, Brier score {found.brier:.4f}"
        if (bias := description.letter_bias) is not None:
            right = sum(bias.right)
            shares = ", ".join(
                f"{letter} {predicted:.0%} ({count / right:.0%} right)"
                for letter, predicted, count in zip(bias.letters, bias.shares, bias.right, strict=True)
            )
            yield f"{one.alias}: predicted {shares}; p against equal shares {probability_text(bias.p)}"
        yield from _about_letters(one.alias, description)
    collapsed = {
        name: found.letters.collapse for name, found in rescored.tasks.items() if found.letters.collapse is not None
    }
    yield from (f"warning: {note}" for note in letter_notes(collapsed))


def _repeated(task: SavedTask) -> int:
    """How many questions of a task are those of earlier lines, by lm-eval's hashes of prompts and answers."""
    if task.samples is None or "" in task.samples.prompt_hashes:
        return 0
    asked = list(zip(task.samples.prompt_hashes, task.samples.target_hashes, strict=True))
    return len(asked) - len(set(asked))


def _about_letters(alias: str, description: Description) -> Iterator[str]:
    """What is left of the accuracy without a preference for letters, and whether that is more than guessing."""
    letters = description.letters
    if (calibrated := letters.calibrated) is not None:
        interval = f"{calibrated.low:.4f} to {calibrated.high:.4f}"
        yield (
            f"{alias}: letter-calibrated accuracy {calibrated.value:.4f} ({interval}), each letter's mean"
            " log-likelihood subtracted"
        )
    if (rank := letters.rank) is not None:
        yield (
            f"{alias}: so calibrated, the right choice is ahead of {rank.beats:.1%} of the wrong ones; guessing gives"
            f" {rank.expected:.1%}; z {rank.z:+.1f}, p {probability_text(rank.p)}"
        )
    if (verdict := guessing_text(description)) is not None:
        yield f"{alias}: {verdict}"


def _settings(results: SavedResults) -> str:
    shown = []
    shots = {task.num_fewshot for task in results.tasks.values() if task.num_fewshot is not None}
    if shots:
        shown.append(f"{'/'.join(map(str, sorted(shots)))}-shot")
    for name, key in _SETTINGS:
        value = results.settings.get(key)
        if value not in (None, ""):
            text = str(value).removeprefix("torch.")
            # Templates and instructions are known by their hash.
            shown.append(f"{name} {text[:12] if key in ('chat_template', 'system_instruction') else text}")
    return ", ".join(shown)
