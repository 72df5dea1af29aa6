"""The embedded demonstration: a tiny language model that has learned a made-up world, and questions about it.

The world has two domains. *forget* is the craft of glimmer brewing, to be removed; *retain* is the life of the Lantern
Isles, to be kept. Everything here is invented (`wmdp_fast.demo.world`) and can be made again
(`python -m wmdp_fast.demo.train`). `wmdp_fast.demo.run` is what `wmdp-fast demo` does. Needs no network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from wmdp_fast.demo.world import DOMAINS

Domain = Literal["forget", "retain"]

FOLDER = Path(__file__).parent  # of the files that are shipped; the functions below also find those of another folder


def model_path(folder: Path = FOLDER) -> Path:
    """The folder of the model and its tokenizer, for transformers' `from_pretrained`."""
    return folder / "model"


def data_path(folder: Path = FOLDER) -> Path:
    """The folder of the question and corpus files."""
    return folder / "data"


def questions_path(domain: Domain, folder: Path = FOLDER) -> Path:
    """The domain's test: four-choice questions in WMDP's layout, one JSON object a line.

    The file is named after the domain's subject, so that the template `mmlu` words the prompts as the model knows them.
    """
    return data_path(folder) / f"{DOMAINS[domain].file_name}_test.jsonl"


def dev_path(domain: Domain, folder: Path = FOLDER) -> Path:
    """The domain's few-shot examples, in the same layout. No fact is both here and in the test."""
    return data_path(folder) / f"{DOMAINS[domain].file_name}_dev.jsonl"


def corpus_path(domain: Domain, folder: Path = FOLDER) -> Path:
    """Documents that tell the domain's facts in prose, one JSON object with the key `text` a line."""
    return data_path(folder) / f"{domain}_corpus.jsonl"
