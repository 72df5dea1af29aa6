"""Every method of unlearning on the demo's world under attack: `make robustness-table`.

Each method runs with the settings that `make methods-table` has chosen for it, once a seed, and what it has made is
attacked with the standard attacks at budget `quick`. The attacks on the model before unlearning, and on the one that
never learned the domain, are run once and taken over. The table goes into `docs/robustness.md`, between two marks, and
all numbers into a JSON file. What is finished lies in the work folder and is not done again.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmdp_fast import demo
from wmdp_fast.demo.methods_table import HELD_OUT, RETAIN, SEEDS, Work, put_between_marks, run_options
from wmdp_fast.runtime import strict_json
from wmdp_fast.runtime.files import write_whole

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

logger = logging.getLogger("wmdp_fast.demo.robustness_table")

BEGIN = "<!-- robustness-table: `make robustness-table` writes what stands between these two lines -->"
END = "<!-- /robustness-table -->"
METHODS = ("rmu", "graddiff", "npo", "simnpo", "rr", "elm", "finetune")


def chosen_settings(file: Path) -> dict[str, dict[str, Any]]:
    """The settings that `make methods-table` has chosen, by method.

    Raises:
        FileNotFoundError: It has not been run.
    """
    methods = json.loads(file.read_text(encoding="utf-8"))["methods"]
    return {name: found["runs"][0]["settings"] for name, found in methods.items() if found["runs"]}


def attacked(
    work: Work, method: str, settings: Mapping[str, Any], seed: int, attacks: str, controls: Path | None
) -> Path:
    """Unlearns and attacks, as far as that is not done.

    Args:
        work: Where, and how many questions are asked.
        method: The method.
        settings: Its settings.
        seed: Of the run.
        attacks: Which.
        controls: The folder of attacks whose controls are taken over.

    Returns:
        The folder of the attacks.
    """
    from wmdp_fast.robustness.api import attack
    from wmdp_fast.unlearning.api import unlearn

    folder = work.folder / f"{method}-seed{seed}"
    if not (folder / "model").exists():
        unlearn(
            demo.model_path(),
            output=folder / "model",
            resume=True,
            **run_options(work.folder, method, {"dtype": "float32", **settings}, seed),
        )
    attack(
        folder / "model",
        base=demo.model_path(),
        never_learned=demo.model_path(learned="retain"),
        tasks=demo.questions_path("forget"),
        utility=demo.questions_path("retain"),
        attacks=attacks,
        budget="quick",
        forget=demo.corpus_path("forget"),
        related=work.folder / RETAIN,
        # The world's own: of English the model knows nothing.
        general_text=work.folder / HELD_OUT,
        eval_options={} if work.limit is None else {"limit": work.limit},
        utility_limit=work.limit,
        dtype="float32",
        output=folder / "attacked",
        controls=controls,
        progress=False,
    )
    return folder / "attacked"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what is not done yet, and writes the table."""
    parser = argparse.ArgumentParser(
        prog="python -m wmdp_fast.demo.robustness_table",
        description="Attack what all methods leave of the demonstration's world.",
    )
    parser.add_argument(
        "--work", type=Path, default=Path("results", "robustness"), metavar="DIR", help="models and attacks"
    )
    parser.add_argument(
        "--settings",
        type=Path,
        default=Path("benches", "results", "methods.json"),
        metavar="FILE",
        help="what `make methods-table` has written",
    )
    parser.add_argument("--methods", nargs="+", default=list(METHODS), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), metavar="N")
    parser.add_argument("--attacks", default="all", metavar="NAMES")
    parser.add_argument("--limit", type=int, metavar="N", help="ask only the first N questions")
    parser.add_argument("--page", type=Path, metavar="FILE", help="put the table between this page's marks")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers here")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    work = Work(arguments.work, arguments.limit)
    work.write_texts()
    settings = chosen_settings(arguments.settings)
    done: list[str] = []
    controls = None
    # All methods with the first seed before the next, so that what was stopped is a table of fewer seeds.
    for seed in arguments.seeds:
        for method in arguments.methods:
            if method not in settings:
                logger.warning("%s: no settings in %s", method, arguments.settings)
                continue
            folder = attacked(work, method, settings[method], seed, arguments.attacks, controls)
            controls = controls or folder
            done.append(f"{method}-seed{seed}={folder}")
            logger.info("%s with seed %d is done", method, seed)
    write(done, arguments.page, arguments.json)


def write(done: Sequence[str], page: Path | None, json_file: Path | None) -> None:
    """Shows the table, and puts it where it belongs."""
    from wmdp_fast.robustness.table.table import table

    found = table(*done)
    logger.info("%s", found)
    if json_file is not None:
        write_whole(json_file, strict_json.dumps(found.to_json(), indent=1) + "\n")
    if page is not None:
        # Models in pairs are in the JSON file; they would be most of the page.
        shown = replace(found, tests=()).markdown(transpose=True)
        text = put_between_marks(page.read_text(encoding="utf-8"), shown, BEGIN, END)
        write_whole(page, text)


if __name__ == "__main__":
    main()
