"""Questions in a file to numpy batches, a forward pass of your own, and accuracies: no torch and no transformers.

The forward pass here is numpy, with a "model" that knows how often one token follows another. Put JAX, MLX or anything
else that takes arrays in its place.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np

import wmdp_fast as wf
from wmdp_fast import demo

ROWS = [
    {"question": "Which bird is blue?", "choices": ["wren", "jay", "tit", "owl"], "answer": 1},
    {"question": "Which bird hunts at night?", "choices": ["wren", "jay", "tit", "owl"], "answer": 3},
    {"question": "Which bird is the smallest?", "choices": ["wren", "jay", "heron", "owl"], "answer": 0},
]


def main() -> None:
    """Runs the example."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "birds.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
        questions = wf.load_questions(file)

    # What the model reads. The second template continues with a choice's own text instead of its letter.
    for template in (wf.PromptTemplate(), wf.PromptTemplate("question", choices="texts")):
        prompts = template.render(questions)
        print(repr(prompts.context(0) + prompts.continuation(0, 1)))

        tokenizer = wf.Tokenizer(
            (demo.model_path() / "tokenizer.json").read_text(encoding="utf-8"),
            add_special_tokens=True,
            prefix_token_id=0,
            prefix_text="<s>",
        )
        requests = tokenizer.encode_requests([prompts], 1024)

        loglikelihood = np.zeros(requests.num_choices)
        is_greedy = np.ones(requests.num_choices, dtype=np.bool_)
        for batch in wf.plan(requests, token_budget=256):
            logprobs = forward(batch.input_ids)  # [rows, tokens, vocabulary]
            rows, positions = batch.readouts.T
            wanted = logprobs[rows, positions]  # [readouts, vocabulary]
            np.add.at(loglikelihood, batch.target_choices, wanted[batch.target_readouts, batch.target_tokens])
            greedy = wanted.argmax(axis=1)[batch.target_readouts] == batch.target_tokens
            np.logical_and.at(is_greedy, batch.target_choices, greedy)

        outcome = wf.aggregate(prompts, loglikelihood, is_greedy, near_tie=1e-4)
        print(f"acc {outcome.acc:.2f}, acc_norm {outcome.acc_norm:.2f}, predicted {outcome.predicted.tolist()}")


def forward(input_ids: np.ndarray) -> np.ndarray:
    """A stand-in for a model: log-probabilities of the next token from a fixed table."""
    vocabulary = 2610
    table = np.random.default_rng(0).normal(size=(64, vocabulary))
    logits = table[input_ids % 64]
    logits -= logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


if __name__ == "__main__":
    main()
