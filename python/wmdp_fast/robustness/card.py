"""What attacks found, in the card of the model that they were on: README.md in its folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from wmdp_fast import _rust
from wmdp_fast.checkpoints.checkpoint import ATTACKS_BEGIN, ATTACKS_END, CARD
from wmdp_fast.robustness.attacks.ask import Ask
from wmdp_fast.robustness.claims import claims
from wmdp_fast.runtime.files import write_whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wmdp_fast.analysis.statistics import Estimate
    from wmdp_fast.robustness.result import AttackResult


def card_of(model: object) -> Path:
    """The card of a model, which need not be there yet.

    Raises:
        ValueError: The model is no folder, so that it has none that could be written.
    """
    if not isinstance(model, (str, os.PathLike)) or not Path(model).is_dir():
        raise ValueError("card is for a model in a folder of its own, whose README.md it writes")
    return Path(model) / CARD


def put_into_card(result: AttackResult, path: Path) -> None:
    """Writes what attacks found into a card, in place of what stands there of earlier ones; the rest stays.

    Args:
        result: The attacks.
        path: The card; made if there is none.

    Raises:
        OSError: It cannot be read or written.
    """
    card = path.read_text(encoding="utf-8") if path.is_file() else ""
    section = f"{ATTACKS_BEGIN}\n\n{attacks_section(result)}\n\n{ATTACKS_END}"
    before, begin, rest = card.partition(ATTACKS_BEGIN)
    _, end, after = rest.partition(ATTACKS_END)
    write_whole(path, before + section + after if begin and end else f"{card.rstrip()}\n\n{section}\n".lstrip())


def attacks_section(result: AttackResult) -> str:
    """What attacks found, what was to be kept, what may be claimed and what was not run, as Markdown."""
    lines = [
        "## Attacks",
        "",
        f"By wmdp-fast {_rust.__version__} at budget {result.budget}: accuracy with 95 % intervals on"
        f" {int((~result.is_for_choosing).sum())} questions of {', '.join(result.tasks)} on which nothing was chosen;"
        f" guessing gives {result.chance:.3f}.",
        "",
        *_table(("attack", *result.models, "null", "recovered"), _attack_rows(result)),
        "",
    ]
    if kept := [[title, *values] for title, values in result.kept_rows()]:
        lines += ["Without an attack:", "", *_table(("kept", *result.models), kept), ""]
    lines += [*(f"- {claim}" for claim in claims(result)), *(f"- {one}" for one in not_run(result))]
    return "\n".join(lines)


def not_run(result: AttackResult) -> list[str]:
    """What was not run and why, a sentence each."""
    lines = []
    for role in result.models:
        lines += [f"Not run on {role}: {name}: {'; '.join(why)}." for name, why in result.missing(role).items()]
        missing = [one for one in result.kept(role) if one.value is None and one.text == "not run"]
        lines += [f"Not run on {role}: {one.title}: {one.why}." for one in missing]
    return [*lines, f"Not run: {', '.join(result.not_asked)}."] if result.not_asked else lines


def _attack_rows(result: AttackResult) -> list[list[str]]:
    rows = []
    for name in dict.fromkeys(name for of in result.findings.values() for name in of):
        null, regained = result.nulls["unlearned"].get(name), result.recovery(name)
        rows.append(
            [
                name if name != Ask.name else f"{name} (no attack)",
                *(_accuracy(of[name].acc) if name in of else "not run" for of in result.findings.values()),
                "" if null is None else _accuracy(null.acc),
                "" if name == Ask.name else "n/a" if regained is None else f"{regained:.0%}",
            ]
        )
    return rows


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines]


def _accuracy(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"
