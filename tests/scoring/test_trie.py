"""The token trie and its batches: equal to the slow way of making them, complete, and no longer than need be."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import trie as reference
from wmdp_fast import Requests
from wmdp_fast._rust import Trie

ARRAYS = [
    "input_ids",
    "position_ids",
    "segments",
    "keep",
    "readouts",
    "target_readouts",
    "target_tokens",
    "targets",
]

tokens = st.lists(st.integers(1, 4), min_size=1, max_size=8)


@st.composite
def questions(draw: st.DrawFn) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Contexts that share beginnings, with continuations that do."""
    prefixes = [[], *draw(st.lists(tokens, max_size=3))]
    contexts, continuations = [], []
    for _ in range(draw(st.integers(1, 6))):
        contexts.append(draw(st.sampled_from(prefixes)) + draw(tokens))
        continuations.append(draw(st.lists(tokens, min_size=1, max_size=4)))
    return contexts, continuations


def rows_of(contexts: list[list[int]], continuations: list[list[list[int]]], max_length: int) -> list[reference.Row]:
    rows, first = [], 0
    for context, choices in zip(contexts, continuations, strict=True):
        for choice in choices:
            sequence = (context + choice[:-1])[-max_length:]
            targets = [(len(sequence) - len(choice) + i, token, first + i) for i, token in enumerate(choice)]
            rows.append(reference.Row(tuple(sequence), tuple(targets)))
            first += len(choice)
    return rows


budgets = st.sampled_from([1, 3, 10, 1000])


@settings(max_examples=200, deadline=None)
@given(questions(), budgets, budgets, st.sampled_from([8, 1000]), st.data())
def test_batches_are_those_of_the_slow_way(drawn, token_budget, readout_budget, max_length, data) -> None:
    rows = rows_of(*drawn, max_length)
    trie = Trie(Requests.from_tokens(*drawn, max_length=max_length))
    paths = reference.paths_of(rows)
    assert trie.num_paths == len(paths)
    assert trie.num_tokens == len({path[:n] for path in paths for n in range(1, len(path) + 1)})
    start = data.draw(st.integers(0, len(paths)))
    expected = reference.pack(rows, token_budget, readout_budget, start)
    batches = list(trie.batches(token_budget, readout_budget, start))
    assert len(batches) == len(expected)
    for batch, slow in zip(batches, expected, strict=True):
        for name in ARRAYS:
            array = getattr(batch, name)
            assert array.dtype == np.int64
            assert array.flags.writeable
            assert array.tolist() == getattr(slow, name), name
        assert (batch.num_carried, batch.stop) == (slow.num_carried, slow.stop)


@settings(max_examples=200, deadline=None)
@given(questions(), budgets, budgets)
def test_every_target_is_read_below_the_tokens_of_its_request(drawn, token_budget, readout_budget) -> None:
    contexts, continuations = drawn
    requests = Requests.from_tokens(contexts, continuations, max_length=1000)
    trie = Trie(requests)
    inputs = [
        (tuple(context + choice[:i]), token)
        for context, choices in zip(contexts, continuations, strict=True)
        for choice in choices
        for i, token in enumerate(choice)
    ]
    carried: list[int] = []
    run, found, stop = 0, {}, 0
    for batch in trie.batches(token_budget, readout_budget):
        keys = carried + batch.input_ids.tolist()
        assert len(carried) == batch.num_carried
        assert 0 < len(batch.input_ids) <= token_budget
        assert len(batch.readouts) <= readout_budget
        subtree_end = np.concatenate([np.full(end - start, subtree) for start, end, subtree, _ in batch.segments])
        for readout, token, target in zip(batch.target_readouts, batch.target_tokens, batch.targets, strict=True):
            query = batch.num_carried + batch.readouts[readout]
            seen = tuple(key for k, key in enumerate(keys) if k <= query < subtree_end[k])
            assert batch.position_ids[batch.readouts[readout]] == len(seen) - 1
            assert target not in found
            found[int(target)] = (seen, int(token))
        carried = [keys[k] for start, end in batch.keep for k in range(start, end)]
        run += len(batch.input_ids)
        assert batch.stop >= stop
        stop = batch.stop
    assert [found[i] for i in range(len(inputs))] == inputs
    assert run == trie.num_tokens
    assert stop == trie.num_paths
    assert carried == []


def test_a_branch_is_made_wherever_paths_part() -> None:
    stem = list(range(100, 140))
    questions = [[*stem, 7, i] for i in range(50, 54)]
    letters = [[[1], [2], [3], [4]]] * 4
    trie = Trie(Requests.from_tokens(questions, letters, max_length=1000))
    assert trie.num_tokens == 41 + 4
    far_apart = [[1, 2, 3, *range(100 * i, 100 * i + 90)] for i in range(1, 5)]
    trie = Trie(Requests.from_tokens(far_apart, letters, max_length=1000))
    assert trie.num_tokens == 3 + 4 * 90


def test_equal_questions_are_run_once() -> None:
    trie = Trie(Requests.from_tokens([[1, 2, 3]] * 5, [[[4], [5]]] * 5, max_length=10))
    (batch,) = trie.batches(100, 100)
    assert batch.input_ids.tolist() == [1, 2, 3]
    assert batch.readouts.tolist() == [2]
    assert batch.target_tokens.tolist() == [4, 5] * 5


def test_no_requests_make_no_batches() -> None:
    trie = Trie(Requests.from_tokens([], [], max_length=10))
    assert list(trie.batches(10, 10)) == []


@pytest.mark.parametrize(("tokens", "readouts", "start"), [(0, 1, 0), (1, 0, 0), (1, 1, 2)])
def test_impossible_budgets_are_refused(tokens: int, readouts: int, start: int) -> None:
    trie = Trie(Requests.from_tokens([[1]], [[[2]]], max_length=10))
    with pytest.raises(ValueError, match=r"at least 1|has 1"):
        trie.batches(tokens, readouts, start)


@pytest.mark.parametrize(
    ("contexts", "continuations", "problem"),
    [
        ([[]], [[[1]]], "question 1: its context has no tokens"),
        ([[1], [1]], [[[1]], [[1], []]], "question 2: choice 2 has 0 tokens"),
        ([[1]], [[[1, 2, 3, 4]]], "choice 1 has 4 tokens, not 1 to 3"),
        ([[1]], [], "1 contexts and continuations of 0 questions"),
    ],
)
def test_requests_from_tokens_name_the_question_at_fault(contexts, continuations, problem) -> None:
    with pytest.raises(ValueError, match=problem):
        Requests.from_tokens(contexts, continuations, max_length=3)


def threads_ahead() -> int:
    """How many threads of this process plan batches."""
    return sum(path.read_text() == "wmdp-fast-ahead\n" for path in Path("/proc/self/task").glob("*/comm"))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are listed in /proc")
def test_batches_that_nobody_takes_any_more_are_not_planned() -> None:
    contexts = [[n, *range(50)] for n in range(1, 2001)]
    trie = Trie(Requests.from_tokens(contexts, [[[1]]] * 2000, max_length=100))
    before = threads_ahead()
    batches = trie.batches(100, 100)
    next(batches)
    assert threads_ahead() == before + 1
    # The trie lives on in its batches.
    del trie
    next(batches)
    del batches
    assert threads_ahead() == before


def test_batches_can_be_taken_from_several_threads() -> None:
    contexts = [[n, *range(50)] for n in range(1, 501)]
    trie = Trie(Requests.from_tokens(contexts, [[[1]]] * 500, max_length=100))
    expected = sorted(batch.stop for batch in trie.batches(100, 100))
    batches = trie.batches(100, 100)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: [batch.stop for batch in batches], range(4)))
    assert sorted(stop for stops in found for stop in stops) == expected


FORKED = """
import os, sys
from wmdp_fast._rust import Requests, Trie
trie = Trie(Requests.from_tokens([[n, 1, 2] for n in range(100)], [[[1]]] * 100, max_length=10))
batches = trie.batches(10, 10)
next(batches)
if os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
try:
    next(batches)
except ValueError as error:
    assert "begun before a fork" in str(error)
    assert len(list(trie.batches(10, 10))) > 10
    del batches
    os._exit(7)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
def test_a_forked_child_is_told_to_begin_anew() -> None:
    assert subprocess.run([sys.executable, "-c", FORKED], timeout=60, check=False).returncode == 7
