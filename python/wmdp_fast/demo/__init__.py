"""The embedded demonstration: a tiny language model that has learnt a made-up world, and questions about it.

The world has two domains. *forget* is the craft of glimmer brewing, to be unlearnt; *retain* is the life of the Lantern
Isles, to be kept. Everything here is invented (`wmdp_fast.demo.world`) and can be made again
(`python -m wmdp_fast.demo.train`). Needs no network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Domain = Literal["forget", "retain"]

_HERE = Path(__file__).parent


def model_path() -> Path:
    """The folder of the model and its tokenizer, for transformers' `from_pretrained`."""
    return _HERE / "model"


def questions_path(domain: Domain) -> Path:
    """The domain's test: four-choice questions in WMDP's layout, one JSON object a line."""
    return _HERE / "data" / f"{domain}_questions.jsonl"


def dev_path(domain: Domain) -> Path:
    """The domain's few-shot examples, in the same layout. No fact is both here and in the test."""
    return _HERE / "data" / f"{domain}_dev.jsonl"


def corpus_path(domain: Domain) -> Path:
    """Documents that tell the domain's facts in prose, one JSON object with the key `text` a line."""
    return _HERE / "data" / f"{domain}_corpus.jsonl"
