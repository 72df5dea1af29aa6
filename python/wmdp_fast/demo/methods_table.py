"""Every method of unlearning on the demo's world, with one budget: `make methods-table`.

All methods get the same documents in the same order, and end where they have changed the model's predictions on
held-out text by `MAX_KL`. Of each method as many settings are tried (`TRIALS`), on the tuning questions and with a seed
that the table does not use; with the best of them it runs with three seeds, and the test is asked. The table goes into
`docs/methods.md`, between two marks, and all numbers into a JSON file. A finished run leaves a file in the work folder
and is not done again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean as mean
from typing import TYPE_CHECKING, Any, cast, get_args

from wmdp_fast import demo
from wmdp_fast.bench.report import peak_gb
from wmdp_fast.demo.method_settings import GRIDS
from wmdp_fast.demo.templates import Shares, accuracies
from wmdp_fast.demo.unlearning import held_out_texts, retain_texts
from wmdp_fast.runtime.files import write_whole
from wmdp_fast.unlearning.methods.catalog import METHODS, config_class

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger("wmdp_fast.demo.methods_table")

MAX_KL = 0.05  # nats per token; the demo's own run ends at 0.014
KL_EVERY = 10  # steps
TRIALS = 3  # settings of each method
SEEDS = (1, 2, 3)
TUNING_SEED = 0
TUNING_ASKED = 160  # questions of each domain
RETAIN, HELD_OUT = "retain.jsonl", "held_out.jsonl"
BEGIN = "<!-- methods-table: `make methods-table` writes what stands between these two lines -->"
END = "<!-- /methods-table -->"


@dataclass(frozen=True)
class Work:
    """Where runs and what they read lie, and how many questions they are asked.

    Attributes:
        folder: With a file for each finished run, the retain data and the held-out text.
        limit: Ask only so many questions of each domain; None is all of the test, and `TUNING_ASKED`.
    """

    folder: Path
    limit: int | None = None

    def asks(self, questions: demo.Questions) -> int | None:
        """How many questions of each domain are asked of a set."""
        return TUNING_ASKED if questions == "tuning" and self.limit is None else self.limit

    def write_texts(self) -> None:
        """Writes what runs read."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, texts in ((RETAIN, retain_texts()), (HELD_OUT, held_out_texts())):
            write_whole(self.folder / name, "".join(json.dumps({"text": text}) + "\n" for text in texts))

    def once(self, about: Mapping[str, Any], work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What comes of some work, from its file if it was done before; a failure is not kept.

        Args:
            about: What the result follows from.
            work: Finds it.
        """
        asked: dict[str, Any] = json.loads(
            json.dumps({**about, "limit": self.asks(about["questions"]), "weights": _weights()})
        )
        name = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]
        file = self.folder / f"{asked['run']}-{name}.json"
        if file.exists():
            kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return kept
        try:
            found = asked | work()
        except Exception as error:  # whatever it was, the other rows are worth having
            logger.warning("%s: %s", asked, error)
            return asked | {"failed": f"{type(error).__name__}: {error}"}
        write_whole(file, json.dumps(found, indent=1) + "\n")
        return found


def one_run(
    folder: Path, method: str, settings: Mapping[str, Any], seed: int, questions: demo.Questions, limit: int | None
) -> dict[str, Any]:
    """Unlearns with a method and asks; in a process of its own, of which it tells how much memory the run added.

    Args:
        folder: With the retain data and the held-out text.
        method: Its name.
        settings: Of the method.
        seed: Of the run.
        questions: What is asked afterwards.
        limit: How many of them of each domain.
    """
    from wmdp_fast.unlearning.api import unlearn

    model, tokenizer = _load("both")
    before, begun = peak_gb(), time.process_time()
    result = unlearn(model, tokenizer=tokenizer, **run_options(folder, method, settings, seed))
    added, seconds = peak_gb() - before, time.process_time() - begun
    budget = cast("dict[str, Any]", result.budget)  # there is one, as max_kl is given
    return {
        "kl": budget["kl"],
        "stopped": result.stopped,
        "steps": result.best_step,
        "steps_done": result.steps,
        "cpu_seconds": seconds,  # of one thread: what else the machine does changes it little
        "peak_megabytes": added * 1e3,
        "shares": accuracies(model, tokenizer, questions=questions, limit=limit),
    }


def run_options(folder: Path, method: str, settings: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """What `unlearn` is given for a run but for the model: texts, settings and the budget that all methods share."""
    return {
        "forget": demo.corpus_path("forget"),
        "retain": folder / RETAIN,
        "config": config_class(method)(**settings, seed=seed),
        "max_kl": MAX_KL,
        "kl_text": folder / HELD_OUT,
        "kl_every": KL_EVERY,
        "progress": False,
    }


def method_run(
    work: Work, method: str, settings: Mapping[str, Any], seed: int, questions: demo.Questions
) -> dict[str, Any]:
    """One run, from its file if it is there."""
    asked = {
        "run": f"{method}-{questions}-seed{seed}",
        "method": method,
        "settings": dict(settings),
        "seed": seed,
        "questions": questions,
        "max_kl": MAX_KL,
        "kl_every": KL_EVERY,
    }
    run = partial(one_run, work.folder, method, settings, seed, questions, work.asks(questions))
    return work.once(asked, partial(_in_a_fresh_process, run))


def shipped_model(work: Work, learned: demo.Learned, questions: demo.Questions) -> Shares:
    """What one of the two models of the package scores."""
    asked = {"run": f"{learned}-{questions}", "learned": learned, "questions": questions}

    def ask() -> dict[str, Any]:
        model, tokenizer = _load(learned)
        return {"shares": accuracies(model, tokenizer, questions=questions, limit=work.asks(questions))}

    shares: Shares = work.once(asked, ask)["shares"]
    return shares


def distance(shares: Shares, never: Shares) -> float:
    """How far from never having learned it, in mean accuracy: what is left of forget plus what is lost of retain.

    Less on forget than a model scores that never learned it is damage, and counts as nothing gained.
    """
    left = [max(0.0, of["forget"] - never[name]["forget"]) for name, of in shares.items()]
    lost = [max(0.0, never[name]["retain"] - of["retain"]) for name, of in shares.items()]
    return mean(left) + mean(lost)


def rows_of(work: Work, method: str, never: Shares) -> dict[str, Any]:
    """A method's trials on the tuning questions, and its runs with the best settings, one a seed.

    Args:
        work: Where.
        method: Its name.
        never: What the model that never learned the domain scores on the tuning questions.
    """
    trials = [method_run(work, method, settings, TUNING_SEED, "tuning") for settings in GRIDS[method]]
    good = [trial for trial in trials if "failed" not in trial]
    if not good:
        return {"trials": trials, "runs": []}
    best = min(good, key=lambda trial: distance(trial["shares"], never))
    settings = GRIDS[method][trials.index(best)]
    return {"trials": trials, "runs": [method_run(work, method, settings, seed, "test") for seed in SEEDS]}


def table(shipped: Mapping[str, Shares], methods: Mapping[str, Mapping[str, Any]]) -> str:
    """The table in Markdown: the shipped models, then a row for each method.

    Args:
        shipped: The shares of the models that no method has changed, by what they are called.
        methods: What `rows_of` says of each.
    """
    head = ["", "forget, mean", "forget, worst", "retain, mean", "retain, worst", "KL", "steps", "CPU s", "MB"]
    rows = [head, ["---", *["---:"] * (len(head) - 1)]]
    rows += [[name, *_accuracy_cells([shares]), "", "", "", ""] for name, shares in shipped.items()]
    rows += [_method_row(method, found) for method, found in methods.items()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _method_row(method: str, found: Mapping[str, Any]) -> list[str]:
    failed = [run["failed"] for run in found["runs"] or found["trials"] if "failed" in run]
    if failed:
        reason = failed[0].replace("|", "/").replace("\n", " ")
        return [f"`{method}`", f"no numbers: {reason}", *[""] * 7]
    runs = found["runs"]
    cells = [f"{mean(run['kl'] for run in runs):.3f}"]
    cells += [f"{mean(run[name] for run in runs):.0f}" for name in ("steps", "cpu_seconds", "peak_megabytes")]
    return [f"`{method}`", *_accuracy_cells([run["shares"] for run in runs]), *cells]


def _accuracy_cells(seeds: Sequence[Shares]) -> list[str]:
    """Mean and worst over the ways of asking, of both domains: means over the seeds, and their range."""
    cells = []
    worst_of: dict[demo.Domain, Callable[[list[float]], float]] = {"forget": max, "retain": min}
    for domain, worst in worst_of.items():
        for over_ways in (mean, worst):
            values = [over_ways([of[domain] for of in shares.values()]) for shares in seeds]
            span = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
            cells.append(f"{mean(values):.2f}{span}")
    return cells


def put_between_marks(page: str, text: str, begin: str = BEGIN, end: str = END) -> str:
    """The page with what stands between the marks replaced.

    Raises:
        ValueError: The page has not both marks.
    """
    before, found, rest = page.partition(begin)
    _, also, after = rest.partition(end)
    if not (found and also):
        raise ValueError(f"the page needs the marks {begin} and {end}, each on a line of its own")
    return f"{before}{begin}\n\n{text}\n{end}{after}"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what is not done yet, and writes the table."""
    parser = argparse.ArgumentParser(
        prog="python -m wmdp_fast.demo.methods_table", description="Compare all methods on the demonstration's world."
    )
    parser.add_argument(
        "--work", type=Path, default=Path("results", "methods"), metavar="DIR", help="files of finished runs"
    )
    parser.add_argument("--page", type=Path, metavar="FILE", help="put the table between this page's marks")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers here")
    parser.add_argument("--methods", nargs="+", default=list(GRIDS), choices=list(METHODS), metavar="NAME")
    parser.add_argument("--limit", type=int, metavar="N", help="ask only the first N questions of each domain")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    work = Work(arguments.work, arguments.limit)
    work.write_texts()
    never = shipped_model(work, "retain", "tuning")
    shipped = {
        "before": shipped_model(work, "both", "test"),
        "never learned": shipped_model(work, "retain", "test"),
    }
    with ThreadPoolExecutor(os.cpu_count()) as side_by_side:
        done = side_by_side.map(lambda method: rows_of(work, method, never), arguments.methods)
        methods = dict(zip(arguments.methods, done, strict=True))
    text = table(shipped, methods)
    logger.info("%s", text)
    if arguments.json is not None:
        write_whole(arguments.json, json.dumps({"shipped": shipped, "methods": methods}, indent=1) + "\n")
    if arguments.page is not None:
        write_whole(arguments.page, put_between_marks(arguments.page.read_text(encoding="utf-8"), text))


def _in_a_fresh_process(run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(run).result()


def _load(learned: demo.Learned) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)  # runs are side by side
    path = demo.model_path(learned=learned)
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    return AutoModelForCausalLM.from_pretrained(path, local_files_only=True, dtype=torch.float32), tokenizer


def _weights() -> str:
    """What tells the models of the package from those of another version."""
    paths = [demo.model_path(learned=learned) / "model.safetensors" for learned in get_args(demo.Learned)]
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


if __name__ == "__main__":
    main()
