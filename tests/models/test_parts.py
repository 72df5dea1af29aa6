"""The parts on their own: they can be pickled, shared between threads, and used from workers of a DataLoader."""

from __future__ import annotations

import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wmdp_fast as wf
from tests.support import tokenizers_zoo

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

QUESTIONS = wf.QuestionSet.from_rows(
    [
        {"question": f"  Étude {n}: which bird? ", "choices": ["wren", "日本", "tit\n", "an owl"], "answer": n % 4}
        for n in range(20)
    ]
)


def parts() -> tuple[wf.PromptTemplate, wf.Prompts, wf.Tokenizer, wf.Requests]:
    template = wf.PromptTemplate("question", choices="texts", description="Birds.\n\n", target_delimiter="  ")
    prompts = template.render(QUESTIONS, QUESTIONS, 2)
    slow = tokenizers_zoo.tokenizer("llama3")
    tokenizer = wf.load_tokenizer(slow, prefix_token_id=1)
    return template, prompts, tokenizer, tokenizer.encode_requests([prompts, prompts], 256)


def described(requests: wf.Requests) -> list[Any]:
    contexts = [requests.context(n).tolist() for n in range(requests.num_questions)]
    choices = [requests.continuation(n).tolist() for n in range(requests.num_choices)]
    about = (requests.engine, requests.why_no_cuts, requests.why_not_fast, requests.max_length, requests.num_rows)
    batches = [batch.input_ids.tolist() for batch in wf.plan(requests, token_budget=100)]
    return [contexts, choices, about, requests.choice_offsets.tolist(), batches]


def test_what_is_pickled_comes_back_the_same() -> None:
    template, prompts, tokenizer, requests = parts()
    again = pickle.loads(pickle.dumps((QUESTIONS, template, prompts, tokenizer, requests)))
    assert again[0] == QUESTIONS
    assert repr(again[1]) == repr(template)
    assert [again[2].context(n) for n in range(20)] == [prompts.context(n) for n in range(20)]
    assert [again[2].choices(n) for n in range(20)] == [prompts.choices(n) for n in range(20)]
    assert (again[2].prefix, again[2].delimiter, again[2].answers) == (
        prompts.prefix,
        prompts.delimiter,
        prompts.answers,
    )
    assert described(again[3].encode_requests([again[2]] * 2, 256)) == described(requests)
    assert described(again[4]) == described(requests)


TOKENS = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5)


@settings(deadline=None)
@given(st.lists(st.tuples(TOKENS, st.lists(TOKENS, min_size=1, max_size=3)), max_size=5), st.integers(5, 9))
def test_any_requests_can_be_pickled(drawn: list[tuple[list[int], list[list[int]]]], max_length: int) -> None:
    requests = wf.Requests.from_tokens([one for one, _ in drawn], [several for _, several in drawn], max_length)
    assert described(pickle.loads(pickle.dumps(requests))) == described(requests)


@pytest.mark.parametrize("index", [2, 4])
def test_bytes_that_are_none_are_refused(index: int) -> None:
    _, prompts, tokenizer, requests = parts()
    restore, _ = (QUESTIONS, None, prompts, tokenizer, requests)[index].__reduce__()
    for state in (b"", b"{}", b"[1]"):
        with pytest.raises(ValueError, match="these bytes are no pickled"):
            restore(state)


def test_threads_may_share_all_of_them() -> None:
    template, prompts, tokenizer, requests = parts()

    def work(_: int) -> list[Any]:
        again = template.render(QUESTIONS, QUESTIONS, 2)
        assert again.context(3) == prompts.context(3)
        return described(tokenizer.encode_requests([again, prompts], 256))

    with ThreadPoolExecutor(8) as pool:
        assert all(found == described(requests) for found in pool.map(work, range(32)))


METHODS = ["fork", "spawn", "forkserver"]


class Batches:
    """A dataset as a DataLoader's workers want it: each worker plans the batches of its own share of the questions."""

    def __init__(self, template: wf.PromptTemplate, tokenizer: wf.Tokenizer) -> None:
        self.template = template
        self.tokenizer = tokenizer

    def share(self, worker: int, workers: int) -> Iterator[np.ndarray[Any, np.dtype[np.int64]]]:
        own = QUESTIONS.select(list(range(worker, len(QUESTIONS), workers)))
        requests = self.tokenizer.encode_requests([self.template.render(own)], 256)
        for batch in wf.plan(requests, token_budget=200):
            yield batch.input_ids


def work(batches: Batches, worker: int) -> list[list[list[int]]]:
    return [batch.tolist() for batch in batches.share(worker, 2)]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_workers_of_any_kind_may_use_them(method: str) -> None:
    template, _, tokenizer, _ = parts()
    batches = Batches(template, tokenizer)
    expected = [work(batches, worker) for worker in range(2)]  # and so the thread pool is there before the fork
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.starmap(work, [(batches, worker) for worker in range(2)]) == expected


class Shares:
    """The shares of two workers as a dataset with an index.

    Unlike an iterable one it is no class of torch's, so that it can be defined here, where spawned workers find it.
    """

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return 2

    def __getitem__(self, worker: int) -> list[list[list[int]]]:
        return work(self.batches, worker)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_data_loader_starts_workers_of_any_kind(method: str) -> None:
    torch = pytest.importorskip("torch")
    template, _, tokenizer, _ = parts()
    shares = Shares(Batches(template, tokenizer))
    expected = [shares[0], shares[1]]
    loader = torch.utils.data.DataLoader(shares, batch_size=None, num_workers=2, multiprocessing_context=method)
    assert list(loader) == expected


@pytest.mark.slow
def test_a_data_loader_hands_out_batches() -> None:
    torch = pytest.importorskip("torch")
    template, _, tokenizer, _ = parts()
    batches = Batches(template, tokenizer)

    class Dataset(torch.utils.data.IterableDataset):  # type: ignore[misc,name-defined]
        def __iter__(self) -> Iterator[Any]:
            info = torch.utils.data.get_worker_info()
            yield from map(torch.from_numpy, batches.share(info.id, info.num_workers))

    loader = torch.utils.data.DataLoader(Dataset(), batch_size=None, num_workers=2, multiprocessing_context="fork")
    found = sorted(batch.tolist() for batch in loader)
    assert found == sorted(work(batches, 0) + work(batches, 1))
