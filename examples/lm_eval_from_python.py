"""lm-eval from Python with the model `wmdp-fast`, on a made-up task: the same call as with `hf`, and its numbers.

Needs lm-eval: `pip install 'wmdp-fast[lm-eval]'`.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import lm_eval
from lm_eval.tasks import TaskManager

from wmdp_fast import demo
from wmdp_fast.integrations.lm_eval import FastHFLM

ROWS = [
    {"story": "The owl slept all day. At night", "endings": ["it hunted for mice.", "it was a teapot."], "right": 0},
    {
        "story": "The heron stood in the river. Then",
        "endings": ["the sky was a spoon.", "it caught a fish."],
        "right": 1,
    },
]


def main() -> None:
    """Runs the example."""
    model = FastHFLM(str(demo.model_path()), dtype="float32", device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "stories.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
        task = {
            "task": "stories",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": folder},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{story}}",
            "doc_to_choice": "{{endings}}",
            "doc_to_target": "right",
        }
        found = lm_eval.simple_evaluate(
            model=model, tasks=[task], task_manager=TaskManager(include_defaults=False), bootstrap_iters=0
        )
    print(found["results"]["stories"])


if __name__ == "__main__":
    main()
