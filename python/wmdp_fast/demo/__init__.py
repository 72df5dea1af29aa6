"""The embedded demonstration: a tiny language model that has learned a made-up world, and questions about it.

The world has two domains. *forget* is the craft of glimmer brewing, to be removed; *retain* is the life of the Lantern
Isles, to be kept. A second model has learned the latter only: it shows what forgetting should come to. Questions are
asked in several ways (`wmdp_fast.demo.templates`). Everything here is invented (`wmdp_fast.demo.world`) and can be made
again (`python -m wmdp_fast.demo.train`). `wmdp_fast.demo.run` is what `wmdp-fast demo` does. Needs no network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from wmdp_fast.demo.world import DOMAINS

Domain = Literal["forget", "retain"]
Questions = Literal["test", "tuning"]
Learned = Literal["both", "retain"]

FOLDER = Path(__file__).parent  # of the files that are shipped; the functions below also find those of another folder


def model_path(folder: Path = FOLDER, *, learned: Learned = "both") -> Path:
    """The folder of a model and its tokenizer, for transformers' `from_pretrained`.

    Args:
        folder: Where the files are.
        learned: `"both"` domains, or `"retain"`: the same architecture, seed and recipe without the facts of the domain
            to forget. What that model scores is what never having learned them looks like.
    """
    return folder / ("model" if learned == "both" else "never_learned")


def data_path(folder: Path = FOLDER) -> Path:
    """The folder of the question and corpus files."""
    return folder / "data"


def questions_path(domain: Domain, folder: Path = FOLDER, questions: Questions = "test") -> Path:
    """A set of the domain's four-choice questions in WMDP's layout, one JSON object a line.

    The file is named after the domain's subject, so that the template `mmlu` words the prompts as the model knows them.

    Args:
        domain: Which of the two.
        folder: Where the files are.
        questions: `"test"`, or `"tuning"`: questions to choose settings on, about facts that the test does not ask.
    """
    return data_path(folder) / f"{DOMAINS[domain].file_name}_{questions}.jsonl"


def dev_path(domain: Domain, folder: Path = FOLDER) -> Path:
    """The domain's few-shot examples, in the same layout. No fact is both here and in the test."""
    return data_path(folder) / f"{DOMAINS[domain].file_name}_dev.jsonl"


def corpus_path(domain: Domain, folder: Path = FOLDER) -> Path:
    """Documents that tell the domain's facts in prose, one JSON object with the key `text` a line."""
    return data_path(folder) / f"{domain}_corpus.jsonl"
