"""How many batches a chunk has by the memory that there is, and how small they are made where that is little."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import tiny_models
from wmdp_fast import Requests
from wmdp_fast.exceptions import ModelError, WmdpFastWarning
from wmdp_fast.models import locate
from wmdp_fast.models.load import LoadedModel, load_model, load_streamed
from wmdp_fast.models.tokenizer_only import load_tokenizer_only
from wmdp_fast.scoring import chunk_memory, padded, streamed
from wmdp_fast.scoring.chunk_memory import Filling
from wmdp_fast.scoring.trie import estimate, score

# Each with its tokens, the bytes of its states, and what it passes on.
BATCHES = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=8)


@given(BATCHES, st.integers(0, 40), st.integers(1, 30))
def test_a_chunk_ends_where_everything_fits(batches: list[tuple[int, int, int]], room: int, most: int) -> None:
    filling = Filling(room, most)
    taken = 0
    for taken, batch in enumerate(batches, 1):  # noqa: B007 (it is used below)
        if not filling.add(*batch):
            break
    fits = [
        count
        for count in range(1, taken + 1)
        if sum(held for _, held, _ in batches[:count]) + batches[count - 1][2] <= room
    ]
    assert filling.end == (fits[-1] if fits else None)
    # It went on until it had enough, or another one as large as the last would not have fitted.
    tokens, held = (sum(batch[which] for batch in batches[:taken]) for which in (0, 1))
    enough = filling.end is not None and tokens + batches[taken - 1][0] > most
    assert taken == len(batches) or enough or held + batches[taken - 1][1] > room


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedModel, LoadedModel]:
    """A model in memory and streamed."""
    folder = tmp_path_factory.mktemp("model")
    tiny_models.build("llama").save_pretrained(folder)
    opened = load_tokenizer_only(
        str(folder),
        tokenizer=tiny_models.tokenizer(),
        revision=None,
        trust_remote_code=False,
        files=locate.locate_model(str(folder), revision=None),
    )
    whole = load_model(str(folder), device="cpu", opened=opened)
    return whole, load_streamed(str(folder), 1 << 40, device="cpu", opened=opened)


@pytest.fixture(scope="module")
def requests() -> Requests:
    """More tokens than a batch has on a CPU."""
    contexts = [[*range(1, 20), number, *range(20, 60)] for number in range(60, 100)]
    return Requests.from_tokens(contexts, [[[1], [2, 3]]] * 40, max_length=128)


def in_memory_of(model: LoadedModel, memory: int) -> LoadedModel:
    assert model.streamed is not None
    cost = type(model.streamed.cost)()
    return replace(model, streamed=replace(model.streamed, memory=memory, cost=cost))


@pytest.mark.parametrize("engine", ["trie", "padded"])
def test_batches_are_smaller_where_memory_is_little(
    engine: Any, both: tuple[LoadedModel, LoadedModel], requests: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (chunk_memory, streamed):
        monkeypatch.setattr(module, "memory_in_use", lambda _: 0)
    # Of the trial.
    monkeypatch.setattr(padded, "_PARTS_BYTES", 0)
    whole, model = both
    budgets = []
    for memory in range(400_000, 6_000_000, 400_000):
        little = in_memory_of(model, memory)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                found = score(little, requests, engine=engine)
            except ModelError as error:
                assert "is too little: 0 GB are taken before the run" in str(error)  # noqa: PT017
                continue
        budgets.append(found.token_budget)
        expected = score(whole, requests, engine=engine, token_budget=found.token_budget)
        np.testing.assert_array_equal(found.loglikelihood, expected.loglikelihood)
        smaller = found.token_budget < 1024
        assert [
            f"is too little for batches of 1024 tokens, so they have at most {found.token_budget}:" in str(one.message)
            for one in said
            if issubclass(one.category, WmdpFastWarning)
        ] == [True] * smaller
        assert found.streamed is not None
        assert found.streamed.get("usual_token_budget") == (1024 if smaller else None)
        assert "streaming 2 layers of up to" in str(estimate(little, requests, engine, "auto"))
    assert budgets == sorted(budgets)
    assert budgets[-1] == 1024
    assert len(set(budgets)) > 2


def test_a_budget_that_was_asked_for_stays(
    both: tuple[LoadedModel, LoadedModel], requests: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (chunk_memory, streamed):
        monkeypatch.setattr(module, "memory_in_use", lambda _: 0)
    with pytest.raises(ModelError, match=r"a batch of \d{3,4} tokens and what is made of it need"):
        score(in_memory_of(both[1], 800_000), requests, engine="trie", token_budget=1024)
