"""Tokenization in parts, by two engines, in parallel, equals lm-eval's rules applied to one pair at a time."""

from __future__ import annotations

import hashlib
import os
import signal
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.requests import LmEvalTokenizer
from tests.support import tokenizers_zoo
from wmdp_fast import Prompts, Requests, Tokenizer
from wmdp_fast.exceptions import TokenizerError

PREFIX_TOKEN = 1  # <s>

WORDS = [
    "the",
    "The",
    "bird",
    "jay",
    "tit",
    "owl",
    "12345",
    "7",
    "A",
    "B.",
    "it's",
    "é",
    "日本",
    "—",
    "<s>",
    "…",
    "Answer:",
]
SPACES = [" ", "  ", "\n", "\n\n", "\t", " \n", "\r\n", ""]
TEXTS = st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(SPACES)), max_size=12).map(
    lambda pairs: "".join(word + space for word, space in pairs)
)


def load(kind: str, *, add_special_tokens: bool = True) -> tuple[Tokenizer, LmEvalTokenizer]:
    slow = tokenizers_zoo.tokenizer(kind)
    fast = Tokenizer(
        slow.backend_tokenizer.to_str(),
        add_special_tokens=add_special_tokens,
        prefix_token_id=PREFIX_TOKEN,
        prefix_text=slow.decode(PREFIX_TOKEN),
    )
    return fast, LmEvalTokenizer(slow, PREFIX_TOKEN, add_special_tokens)


def check_equal(fast: Tokenizer, slow: LmEvalTokenizer, tasks: list[Prompts]) -> None:
    expected = [
        [slow.encode_pair(task.context(q), task.continuation(q, c)) for c in range(len(task.choices(q)))]
        for task in tasks
        for q in range(len(task))
    ]
    if any(not context or not continuation for pairs in expected for context, continuation in pairs):
        with pytest.raises(TokenizerError, match=r"<memory>, row \d+"):
            fast.encode_requests(tasks, max_length=4096)
        return
    requests = fast.encode_requests(tasks, max_length=4096)
    assert requests.num_questions == len(expected)
    for question, pairs in enumerate(expected):
        first = int(requests.choice_offsets[question])
        for choice, (context, continuation) in enumerate(pairs):
            assert requests.context(question).tolist() == context
            assert requests.continuation(first + choice).tolist() == continuation


@pytest.mark.parametrize("kind", tokenizers_zoo.KINDS)
@pytest.mark.parametrize("special", [True, False])
@given(
    tasks=st.lists(
        st.tuples(TEXTS, st.lists(st.tuples(TEXTS, st.lists(TEXTS, min_size=2, max_size=3)), min_size=1, max_size=4)),
        min_size=1,
        max_size=3,
    ),
    delimiter=st.sampled_from([" ", "", "\n"]),
)
@settings(max_examples=30, deadline=None)
def test_tokens_equal_lm_evals_pair_by_pair(
    kind: str, special: bool, tasks: list[tuple[str, list[tuple[str, list[str]]]]], delimiter: str
) -> None:
    fast, slow = load(kind, add_special_tokens=special)
    prompts = [
        Prompts.from_contexts(
            [prefix + body for body, _ in questions],
            [choices for _, choices in questions],
            [0] * len(questions),
            delimiter=delimiter,
        )
        for prefix, questions in tasks
    ]
    check_equal(fast, slow, prompts)


@pytest.mark.parametrize("kind", ["gpt2", "gpt2_prefix_space", "smollm", "llama3", "llama2", "gemma", "bos_and_eos"])
def test_known_tokenizers_are_tokenized_in_parts(kind: str) -> None:
    fast, slow = load(kind)
    assert fast.why_no_cuts is None
    shots = "The following are about birds.\n\nWhich bird?\nA. jay\nB. owl\nAnswer: B\n\n"
    contexts = [f"{shots}Bird {i}, the jay?\nA. é\nB. {i}\nAnswer:" for i in range(50)]
    prompts = Prompts.from_contexts(contexts, [["A", "B"]] * 50, [0] * 50, delimiter=" ")
    check_equal(fast, slow, [prompts])


@pytest.mark.parametrize(("kind", "told"), [("unigram", "Unigram"), ("wordpiece", "WordPiece")])
def test_what_is_not_proven_is_tokenized_whole_and_says_so(kind: str, told: str) -> None:
    fast, slow = load(kind)
    assert told in (fast.why_no_cuts or "")
    prompts = Prompts.from_contexts(["the bird\nA", "the jay\nB"], [["A", "B"]] * 2, [0, 0], delimiter=" ")
    requests = fast.encode_requests([prompts], 100)
    assert told in (requests.why_no_cuts or "")
    check_equal(fast, slow, [prompts])


def test_an_unsupported_tokenizer_falls_back_to_the_reference_and_says_so() -> None:
    fast, _ = load("unigram")
    prompts = Prompts.from_contexts(["the bird\nA"], [["A", "B"]], [0], delimiter=" ")
    requests = fast.encode_requests([prompts], 100)
    assert requests.engine == "tokenizers"
    assert requests.why_not_fast


def test_long_requests_lose_tokens_on_the_left() -> None:
    fast, slow = load("llama3")
    prompts = Prompts.from_contexts(["the bird " * 20 + "Answer:"], [["jay owl", "A"]], [0], delimiter=" ")
    requests = fast.encode_requests([prompts], max_length=10)
    batch = requests.padded_batch(0, 1000)
    assert batch is not None
    context, continuation = slow.encode_pair(prompts.context(0), prompts.continuation(0, 0))
    assert batch.input_ids[0].tolist() == (context + continuation)[-11:][:-1]


def test_faults_name_file_and_row() -> None:
    fast, _ = load("gpt2")
    good = Prompts.from_contexts(["the bird"], [["A", "B"]], [0], delimiter=" ")
    empty = Prompts.from_contexts(["the bird", "the jay"], [["A", "B"], ["A", ""]], [0, 0], source="owls.csv")
    with pytest.raises(TokenizerError, match=r"owls\.csv, row 2: choice 2 has no tokens"):
        fast.encode_requests([good, empty], 100)
    blank = Prompts.from_contexts([" \n"], [["A", "B"]], [0])
    with pytest.raises(TokenizerError, match="<memory>, row 1: its context has no tokens"):
        fast.encode_requests([blank], 100)
    with pytest.raises(TokenizerError, match="more than the model's 1"):
        fast.encode_requests([Prompts.from_contexts(["the"], [["A", "jay owl jay owl"]], [0])], 1)
    with pytest.raises(ValueError, match="max_length"):
        fast.encode_requests([good], 0)
    with pytest.raises(ValueError, match="token_budget"):
        fast.encode_requests([good], 10).padded_batch(0, 0)


@pytest.mark.parametrize("text", ["", "{}", "[]", "nonsense", '{"model": {"type": "BPE"}}'])
def test_what_is_no_tokenizer_is_refused(text: str) -> None:
    with pytest.raises(TokenizerError):
        Tokenizer(text, add_special_tokens=True, prefix_token_id=0, prefix_text="<s>")


def test_arrays_are_int64_and_writable() -> None:
    fast, _ = load("gpt2")
    requests = fast.encode_requests([Prompts.from_contexts(["the bird"], [["A", "jay owl"]], [0], delimiter=" ")], 100)
    batch = requests.padded_batch(0, 100)
    assert batch is not None
    for name in ("input_ids", "lengths", "readouts", "target_readouts", "target_tokens", "target_choices"):
        array = getattr(batch, name)
        assert array.dtype == np.int64
        assert array.flags.writeable
        assert array.flags.c_contiguous


def many_prompts() -> Prompts:
    texts = [f"The bird number {i} é is the jay?\nA. owl\nB. tit {i}\nAnswer:" * 20 for i in range(3000)]
    return Prompts.from_contexts(texts, [["A", "B"]] * len(texts), [0] * len(texts), delimiter=" ")


def test_threads_share_a_tokenizer() -> None:
    fast, _ = load("llama3")
    prompts = Prompts.from_contexts([f"bird {i}" for i in range(64)], [["A", "B"]] * 64, [0] * 64, delimiter=" ")
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: fast.encode_requests([prompts], 100).padded_batch(0, 10**6), range(16)))
    assert all(np.array_equal(result.input_ids, results[0].input_ids) for result in results if result and results[0])


def test_a_forked_child_can_tokenize() -> None:
    fast, _ = load("gpt2")
    prompts = many_prompts()
    expected = fast.encode_requests([prompts], 4096).num_tokens
    pid = os.fork()
    if pid == 0:
        os._exit(0 if fast.encode_requests([prompts], 4096).num_tokens == expected else 1)
    deadline = time.monotonic() + 60
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            pytest.fail("the child hangs")
        time.sleep(0.05)
    assert os.waitstatus_to_exitcode(status) == 0


def test_ctrl_c_stops_tokenization() -> None:
    # A shell that starts its jobs in the background lets them ignore Ctrl-C, this test run among them.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    fast, _ = load("wordpiece")
    prompts = many_prompts()
    # The signal arrives while the call is under way: it takes seconds, this a tenth of one.
    threading.Timer(0.1, signal.raise_signal, [signal.SIGINT]).start()

    def tokenize_until_stopped() -> None:
        for _ in range(100):
            fast.encode_requests([prompts], 4096)

    try:
        with pytest.raises(KeyboardInterrupt):
            tokenize_until_stopped()
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_hash_is_of_the_tokens_and_nothing_else() -> None:
    def by_hand(contexts: list[list[int]], continuations: list[list[list[int]]], max_length: int) -> str:
        data = b"wmdp-fast requests 1\n" + struct.pack("<Q", max_length)
        for context, choices in zip(contexts, continuations, strict=True):
            data += struct.pack(f"<Q{len(context)}IQ", len(context), *context, len(choices))
            for tokens in choices:
                data += struct.pack(f"<Q{len(tokens)}I", len(tokens), *tokens)
        return hashlib.sha256(data).hexdigest()

    contexts, continuations = [[1, 2, 3], [1, 2, 4]], [[[5], [6, 7]], [[5], [8]]]
    given_tokens = Requests.from_tokens(contexts, continuations, 16)
    assert given_tokens.content_hash == by_hand(contexts, continuations, 16)
    assert given_tokens.content_hash != Requests.from_tokens(contexts, continuations, 17).content_hash
    assert given_tokens.content_hash != Requests.from_tokens([[1, 2], [3, 1, 2, 4]], continuations, 16).content_hash
    # However the tokens were made: with a shared beginning, too.
    slow = tokenizers_zoo.tokenizer("gpt2")
    tokenizer = Tokenizer(
        slow.backend_tokenizer.to_str(), add_special_tokens=True, prefix_token_id=1, prefix_text=slow.decode(1)
    )
    texts = ["About birds.\n\nIs a wren one?\nAnswer:", "About birds.\n\nIs an oak one?\nAnswer:"]
    made = tokenizer.encode_requests([Prompts.from_contexts(texts, [["A", "B"]] * 2, [0, 1], delimiter=" ")], 64)
    contexts = [made.context(question).tolist() for question in range(2)]
    continuations = [
        [made.continuation(2 * question + choice).tolist() for choice in range(2)] for question in range(2)
    ]
    assert made.content_hash == by_hand(contexts, continuations, 64)
