"""Does real text that was unlearned come back? RMU beside NPO on a small model, by perplexity.

    python benches/licenses.py MODEL [--steps N] [--relearn N] [--max-kl X] [--report FILE]

The text to forget is the licenses of the Free Software Foundation in `/usr/share/common-licenses`, as Debian has them;
the text to keep is Python's help topics. Both methods get the same documents, steps and budget (KL from the original
model on general text). What they leave is fine-tuned for a few steps on other paragraphs of these licenses, on licenses
of others, and, as a null, on help topics; so is the original model. What is measured is nats per token on paragraphs
that nothing was trained on. Takes about a quarter of an hour with SmolLM2-135M on two cores.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import math
import pydoc_data.topics
import re
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import wmdp_fast as wf

LICENSES = Path("/usr/share/common-licenses")

# Whose licenses are to be forgotten, by how their names begin.
FORGOTTEN = ("GPL", "LGPL", "GFDL")

# A paragraph has so many words at least, and so many tokens at most.
WORDS, TOKENS = 20, 128

# Paragraphs of each kind that are measured.
MEASURED = 40


@dataclass(frozen=True)
class Texts:
    """Paragraphs of one kind: what is trained on in unlearning, in relearning, and what is measured."""

    unlearn: list[str]
    relearn: list[str]
    measured: list[str]


def paragraphs(text: str) -> list[str]:
    """Those of some length, their words apart by one space."""
    found = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text)]
    return [part for part in found if len(part.split()) >= WORDS]


def split(found: list[str]) -> Texts:
    """By a hash of their words, so that the same paragraph in two versions of a license is on one side."""
    unique = {hashlib.sha256(re.sub(r"\W+", " ", one.lower()).encode()).hexdigest(): one for one in found}
    ordered = [unique[key] for key in sorted(unique)]
    rest = ordered[MEASURED:]
    half = len(rest) // 2
    return Texts(unlearn=rest[:half], relearn=rest[half:], measured=ordered[:MEASURED])


def of_licenses(*, forgotten: bool) -> Texts:
    """Those to forget, or those of others."""
    files = [one for one in sorted(LICENSES.iterdir()) if one.name.startswith(FORGOTTEN) is forgotten]
    files = [one for one in files if not one.is_symlink()]
    return split([part for one in files for part in paragraphs(one.read_text(encoding="utf-8", errors="replace"))])


def nats(model: Any, tokenizer: Any, texts: dict[str, list[str]]) -> dict[str, float]:
    """Mean nats per token, by text."""
    result: Any = wf.evaluate(model, tokenizer=tokenizer, tasks=(), text=texts, progress=False)
    return {name: math.log(result[name].metrics["token_perplexity"]) for name in texts}


def corpus(folder: Path, name: str, texts: list[str]) -> str:
    """The paragraphs as a file, a document each."""
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"text": one}) + "\n" for one in texts), encoding="utf-8")
    return str(path)


def configs(steps: int) -> dict[str, wf.TrainingConfig]:
    """Both methods; RMU's as in `examples/forget_licenses.py`."""
    common: dict[str, Any] = {"max_length": TOKENS, "retain_max_length": TOKENS, "max_steps": steps}
    return {
        "rmu": wf.RMUConfig(layer_id=7, steering_coeff=60.0, alpha=60.0, learning_rate=1e-3, mode="masked", **common),
        "npo": wf.NPOConfig(learning_rate=1e-4, retain_weight=2.0, warmup=0.0, schedule="constant", **common),
    }


def relearning(steps: int) -> wf.TrainingConfig:
    """Fine-tuning of the same matrices in all layers."""
    common: dict[str, Any] = {"max_length": TOKENS, "retain_max_length": TOKENS, "max_steps": steps}
    return wf.FinetuneConfig(learning_rate=2e-5, warmup=0.0, schedule="constant", **common)


def main() -> None:
    """Unlearns, fine-tunes what is left, and measures after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--steps", type=int, default=60, help="of unlearning, at most (default 60)")
    parser.add_argument("--relearn", type=int, default=10, help="steps of fine-tuning (default 10)")
    parser.add_argument("--max-kl", type=float, default=0.1, help="nats per token (default 0.1)")
    parser.add_argument("--report", type=Path, help="write the table there too")
    arguments = parser.parse_args()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    warnings.simplefilter("ignore", wf.WmdpFastWarning)  # what a run says of itself is in the table
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    base = AutoModelForCausalLM.from_pretrained(arguments.model, dtype="float32").eval()
    ours, others = of_licenses(forgotten=True), of_licenses(forgotten=False)
    topics = split([part for text in pydoc_data.topics.topics.values() for part in paragraphs(text)])
    measured = {"forgotten": ours.measured, "other licenses": others.measured, "help topics": topics.measured}
    tuned = {"these licenses": ours.relearn, "other licenses": others.relearn, "help topics": topics.relearn}
    rows = [("model", "then trained on", "steps", *measured)]

    def measure(name: str, model: Any, on: str = "", steps: int = 0) -> None:
        rows.append((name, on, str(steps), *(f"{value:.3f}" for value in nats(model, tokenizer, measured).values())))
        print(*rows[-1], file=sys.stderr)

    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        texts: dict[str, Any] = {
            "forget": corpus(folder, "forget", ours.unlearn),
            "retain": corpus(folder, "retain", topics.unlearn),
        }
        models = {"original": base}
        for method, config in configs(arguments.steps).items():
            models[method] = copy.deepcopy(base)
            budget: dict[str, Any] = {"max_kl": arguments.max_kl, "kl_every": 2}
            run = wf.unlearn(models[method], tokenizer=tokenizer, **texts, config=config, **budget, progress=False)
            print(f"{method}: {run.best_step} steps, KL {(run.budget or {}).get('kl')}", file=sys.stderr)
        for name, model in models.items():
            measure(name, model)
            for on, paragraphs_of_it in tuned.items():
                again, documents = copy.deepcopy(model), corpus(folder, "relearn", paragraphs_of_it)
                both: dict[str, Any] = {"forget": documents, "retain": documents}
                wf.unlearn(again, tokenizer=tokenizer, **both, config=relearning(arguments.relearn), progress=False)
                measure(name, again, on, arguments.relearn)
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    table = "\n".join([lines[0], "|---|---|" + "---:|" * (len(rows[0]) - 2), *lines[1:]])
    print(table)
    if arguments.report:
        arguments.report.write_text(table + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
