"""Unlearns one kind of English and keeps another, on text that comes with Debian and with Python.

Forget: the licenses in /usr/share/common-licenses. Retain: the language reference that `help()` shows in Python, and
the longer docstrings of its standard library. Every fifth passage is held out, and the perplexity of some of these is
measured before and after.

    python examples/forget_licenses.py SmolLM2-135M-Instruct --dtype float32

Without a model, the tiny one of the demonstration takes three steps, which shows only that everything runs: it knows
no English.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import sysconfig
import tempfile
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import wmdp_fast
from wmdp_fast import demo

LICENSES = Path("/usr/share/common-licenses")


def docstrings(shortest: int = 400) -> list[str]:
    """Docstrings of the standard library of at least so many characters."""
    library = Path(sysconfig.get_path("stdlib"))
    found = []
    for file in sorted(library.rglob("*.py")):
        # Tests have files that are no Python on purpose.
        if {"site-packages", "test", "tests"} & set(file.relative_to(library).parts) or "lib2to3" in file.parts:
            continue
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                found += [text] if len(text) >= shortest else []
    return found


def passages(documents: list[str], characters: int) -> list[str]:
    """Cuts documents between paragraphs into passages of about so many characters."""
    found = [""]
    for document in documents:
        for paragraph in document.split("\n\n"):
            found[-1] += f"{' '.join(paragraph.split())}\n"
            if len(found[-1]) > characters:
                found.append("")
    return found[:-1]


@torch.no_grad()
def perplexity(model: Any, tokenizer: Any, texts: list[str], max_length: int) -> float:
    """The exponential of the mean loss of a token, over all texts."""
    loss, count = 0.0, 0
    for text in texts:
        tokens = tokenizer(text, return_tensors="pt", truncation=True, max_length=max_length)["input_ids"]
        tokens = tokens.to(model.device)
        predicted = tokens.shape[1] - 1
        loss += model(input_ids=tokens, labels=tokens).loss.item() * predicted
        count += predicted
    return math.exp(loss / count)


def main() -> None:
    """Measures, unlearns, measures again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a folder with a model of transformers")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--layer-id", type=int, default=7)
    parser.add_argument("--steering-coeff", default="60")
    parser.add_argument("--alpha", type=float, default=60.0)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--max-length", type=int, default=128, help="tokens of a passage")
    parser.add_argument("--held-out", type=int, default=40, metavar="N", help="passages of each kind to measure on")
    options = parser.parse_args()
    if options.model is None:
        options.model, options.layer_id, options.steps, options.held_out = demo.model_path(), 2, 3, 2

    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=options.dtype)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    licenses = [path.read_text() for path in sorted(LICENSES.iterdir()) if not path.is_symlink()]
    kinds = {"forget (licenses)": licenses, "retain (Python)": [*topics.values(), *docstrings()]}
    texts = {kind: passages(documents, 5 * options.max_length) for kind, documents in kinds.items()}
    training = [[text for number, text in enumerate(found) if number % 5] for found in texts.values()]
    held_out = {kind: found[::5][: options.held_out] for kind, found in texts.items()}

    def measure() -> dict[str, float]:
        return {kind: perplexity(model, tokenizer, found, options.max_length) for kind, found in held_out.items()}

    before = measure()
    config = wmdp_fast.RMUConfig(
        layer_id=options.layer_id,
        steering_coeff=options.steering_coeff,
        alpha=options.alpha,
        learning_rate=options.learning_rate,
        max_steps=options.steps,
        max_length=options.max_length,
        retain_max_length=options.max_length,
        epochs=100,
    )
    with tempfile.TemporaryDirectory() as folder:
        forget, retain = Path(folder, "forget.jsonl"), Path(folder, "retain.jsonl")
        for file, found in zip((forget, retain), training, strict=True):
            file.write_text("".join(json.dumps({"text": text}) + "\n" for text in found))
        wmdp_fast.unlearn(model, forget=forget, retain=retain, config=config, tokenizer=tokenizer)
    after = measure()
    for kind in texts:
        ratio = after[kind] / before[kind]
        print(f"{kind}: perplexity {before[kind]:.2f} before, {after[kind]:.2f} after, {ratio:.3f} times")


if __name__ == "__main__":
    main()
