"""Made-up tasks in the shapes that lm-eval has: texts as choices, whole documents, generation."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

_BIRDS = ["wren", "jay", "blue tit", "barn owl", "grey heron", "puffin", "magpie", "kingfisher"]
_PLACES = ["in the old oak", "beside the slow river", "on the harbour wall", "under the church roof", "in a hedge"]
_DOINGS = ["sings at dawn", "hides its eggs", "hunts for mice", "carries straw", "waits for the tide", "naïvely naps"]


def _sentence(random: random.Random) -> str:
    return f"the {random.choice(_BIRDS)} {random.choice(_DOINGS)} {random.choice(_PLACES)}"


def write(folder: Path, *, count: int = 8, sentences: int = 2, document: int = 16) -> dict[str, Path]:
    """Writes rows for each shape of task; names to files.

    Args:
        folder: Where to.
        count: Rows of each.
        sentences: Sentences before each ending of a `story`, and in it.
        document: Sentences of each whole document.
    """
    chance = random.Random(7)

    def sentences_of(number: int) -> str:
        return ". ".join(_sentence(chance).capitalize() for _ in range(number))

    rows: dict[str, list[dict[str, Any]]] = {
        "story": [
            {
                "query": f"{sentences_of(sentences)}. Then",
                "choices": [f"{_sentence(chance)} and {_sentence(chance)}." for _ in range(4)],
                "label": str(index % 4),
            }
            for index in range(count)
        ],
        "quiz": [
            {
                "question": f"Where would you look for a {chance.choice(_BIRDS)} that {chance.choice(_DOINGS)}?",
                "choices": {"text": chance.sample(_PLACES, 4), "label": ["A", "B", "C", "D"]},
                "answerKey": "ABCD"[index % 4],
            }
            for index in range(count)
        ],
        "page": [{"page": sentences_of(document)} for _ in range(max(1, count // 4))] + [{"page": "Owl."}],
        "say": [{"question": f"{_sentence(chance)}, and", "answer": "owl"} for _ in range(3)],
    }
    files = {}
    for name, lines in rows.items():
        files[name] = folder / f"{name}.jsonl"
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        files[name].write_text(text, encoding="utf-8")
    return files


def configs(files: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """Inline configurations: `story` is hellaswag's shape, `quiz` arc's, `page` wikitext's; `say` generates."""
    choices = [
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
    ]
    own: dict[str, dict[str, Any]] = {
        "story": {
            "output_type": "multiple_choice",
            "doc_to_text": "{{query}}",
            "doc_to_target": "{{label}}",
            "doc_to_choice": "choices",
            "metric_list": choices,
        },
        "quiz": {
            "output_type": "multiple_choice",
            "doc_to_text": "Question: {{question}}\nAnswer:",
            "doc_to_target": "{{choices.label.index(answerKey)}}",
            "doc_to_choice": "{{choices.text}}",
            "metric_list": choices,
        },
        "page": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{page}}",
            "metric_list": [{"metric": "word_perplexity"}, {"metric": "byte_perplexity"}, {"metric": "bits_per_byte"}],
        },
        "say": {
            "output_type": "generate_until",
            "doc_to_text": "{{question}}",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": ["."], "max_gen_toks": 8, "do_sample": False},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        },
    }
    return {
        name: {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(files[name])}},
            "test_split": "test",
            **config,
        }
        for name, config in own.items()
    }
