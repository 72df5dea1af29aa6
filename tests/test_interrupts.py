"""Ctrl-C in every long call of the extension, while it is under way."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

CALLS = {
    "read": "lambda: read_questions(path)",
    "hash": "lambda: questions.content_hash",
    "select": "lambda: questions.select(places)",
    "concat": "lambda: QuestionSet.concat([questions, questions])",
    "head": "lambda: questions.head(len(questions) - 1)",
    "permuted": "lambda: questions.permuted('cyclic')",
    "shared": "lambda: questions.shared_with(questions)",
    "rows": "lambda: QuestionSet.from_rows(rows)",
    "render": "lambda: template.render(questions)",
    "pickle": "lambda: pickle.loads(pickle.dumps(prompts))",
    "encode": "lambda: tokenizer.encode_requests([prompts], 4096)",
    "corpora ahead": "lambda: CorporaAhead(**made_of, corpora=[([path], 64, 'question', False, 0, None)]).take(0)",
    "requests hash": "lambda: requests.content_hash",
    "plan": "lambda: pickle.loads(pickle.dumps(requests))",
    "trie": "lambda: Trie(requests)",
    "aggregate": "lambda: aggregate(prompts, scores, greedy, near_tie=0.01)",
    "write samples": "lambda: write_samples(samples, questions, prompts, outcome, ['acc'])",
    "read samples": "lambda: (write_samples(samples, questions, prompts, outcome, ['acc']), read_samples(samples))",
    "samples": "lambda: Samples.from_outcome(questions, prompts, outcome)",
}

SCRIPT = """
import pickle, signal, sys
import numpy as np
sys.path.insert(0, sys.argv[2])
from tests.support import tokenizers_zoo
from wmdp_fast._rust import (
    CorporaAhead, PromptTemplate, QuestionSet, Samples, Tokenizer, Trie, aggregate, read_questions, read_samples,
    write_samples,
)

# A shell that starts its jobs in the background lets them ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
path, samples = sys.argv[1], sys.argv[1] + ".samples"
questions = read_questions(path)
places = list(range(len(questions)))
rows = [{"question": one.question, "choices": one.choices, "answer": one.answer} for one in questions]
template = PromptTemplate("question", choices="texts")
prompts = template.render(questions)
slow = tokenizers_zoo.tokenizer("gpt2")
made_of = {
    "json": slow.backend_tokenizer.to_str(), "add_special_tokens": True, "prefix_token_id": 1,
    "prefix_text": slow.decode(1),
}
tokenizer = Tokenizer(**made_of)
requests = tokenizer.encode_requests([prompts], 4096)
scores = -np.random.default_rng(0).random(requests.num_choices)
greedy = np.zeros(requests.num_choices, dtype=bool)
outcome = aggregate(prompts, scores, greedy, near_tie=0.01)
content_hash = requests.content_hash
for name, call in CALLS.items():
    try:
        print(name, flush=True)
        while True:
            call()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
# What was stopped has left everything as it was.
assert tokenizer.encode_requests([prompts], 4096).content_hash == content_hash
assert Trie(requests).num_paths > 0
print("done", flush=True)
"""


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "moths.jsonl"
    with path.open("w") as file:
        for number in range(20_000):
            choices = [f"moth {number % 97}", f"wren {number * 7919 % 1009}", "oak", f"reed {number}"]
            row = {"question": f"{number * 7919 % 20_011} is which?", "choices": choices, "answer": number % 4}
            file.write(json.dumps(row) + "\n")
    return path


def test_ctrl_c_ends_every_long_call_and_leaves_nothing_broken(questions: Path) -> None:
    calls = "".join(f"    {name!r}: {call},\n" for name, call in CALLS.items())
    script = SCRIPT.replace("for name, call in CALLS", f"CALLS = {{\n{calls}}}\nfor name, call in CALLS")
    command = [sys.executable, "-c", script, str(questions), str(Path(__file__).parents[1])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        for name in CALLS:
            assert child.stdout.readline().strip() == name, child.stderr.read()
            os.kill(child.pid, signal.SIGINT)
            assert child.stdout.readline() == "interrupted\n", child.stderr.read()
        assert child.stdout.readline() == "done\n", child.stderr.read()
        assert child.wait(timeout=60) == 0
    # A samples file is there whole or not at all, and nothing else is left beside it.
    assert {file.name for file in questions.parent.iterdir()} <= {questions.name, f"{questions.name}.samples"}
