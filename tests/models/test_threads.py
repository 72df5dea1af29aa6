"""Several threads: each gets the numbers it would get alone, and models are left as they were."""

from __future__ import annotations

import asyncio
import copy
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import wmdp_fast as wf
from tests.support import tiny_models
from tests.support import unlearning_runs as runs
from tests.support.expected_warnings import VERDICTS
from wmdp_fast.integrations.training import evaluate_in_place
from wmdp_fast.models.threads import computing, loading, only_user
from wmdp_fast.unlearning.rmu.config import RMUConfig

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from transformers import PreTrainedModel

_THREADS, _ROUNDS = 4, 10
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "hens.jsonl"
    rows = [
        {"question": f"How many hens has farm {number}?", "choices": ["1", "some", "none", "42"], "answer": number % 4}
        for number in range(4)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved models, by the name of their dtype."""
    found = {}
    for family, (name, dtype) in zip(("llama", "qwen2"), _DTYPES.items(), strict=True):
        folder = found[name] = tmp_path_factory.mktemp("model") / name
        tiny_models.build(family, dtype).save_pretrained(folder)
        tiny_models.tokenizer().save_pretrained(folder)
    return found


def outcome(model: Any, questions: Path, **options: Any) -> list[float]:
    if not isinstance(model, torch.nn.Module):
        options["device"] = "cpu"
    else:
        options["tokenizer"] = tiny_models.tokenizer()
    result = wf.evaluate(model, tasks=questions, progress=False, **options)
    return result.tasks["hens"].outcome.loglikelihood.tolist()


def snapshot(model: PreTrainedModel) -> list[Any]:
    """All that a run changes for a while."""
    return [
        (name, module.training, vars(module).get("forward"), config and config._attn_implementation)
        for name, module in model.named_modules()
        for config in [getattr(module, "config", None)]
    ]


def in_threads(calls: list[Callable[[], Any]]) -> list[Any]:
    """Calls begun at the same time."""
    barrier = threading.Barrier(len(calls))

    def begin(call: Callable[[], Any]) -> Any:
        barrier.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(begin, call) for call in calls]]


@pytest.mark.parametrize("engine", ["auto", "padded"])
def test_threads_on_one_model(questions: Path, engine: str) -> None:
    model = tiny_models.build("llama").train()
    model.model.layers[0].eval()
    before, expected = snapshot(model), outcome(copy.deepcopy(model), questions, engine=engine)
    for _ in range(_ROUNDS):
        for found in in_threads([lambda: outcome(model, questions, engine=engine)] * _THREADS):
            np.testing.assert_array_equal(found, expected)
        assert snapshot(model) == before


def test_threads_on_models_of_several_types_in_memory_and_on_disk(questions: Path, folders: dict[str, Path]) -> None:
    models = {name: tiny_models.build("llama", dtype) for name, dtype in _DTYPES.items()}
    asked = [*models.values(), *folders.values()]
    before = [snapshot(model) for model in models.values()]
    expected = [outcome(model, questions) for model in asked]
    for _ in range(_ROUNDS):
        found = in_threads([lambda model=model: outcome(model, questions) for model in asked])  # type: ignore[misc]
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)
        assert [snapshot(model) for model in models.values()] == before


def test_models_that_share_a_configuration(questions: Path) -> None:
    first = tiny_models.build("llama")
    second = type(first)(first.config).eval()
    assert second.config is first.config
    expected = [outcome(model, questions) for model in (first, second)]
    for _ in range(_ROUNDS):
        assert in_threads([lambda: outcome(first, questions), lambda: outcome(second, questions)]) == expected
    assert first.config._attn_implementation == "sdpa"


def test_tasks_of_asyncio(questions: Path) -> None:
    model = tiny_models.build("llama")
    expected = outcome(model, questions)

    async def ask() -> list[list[float]]:
        return await asyncio.gather(*(asyncio.to_thread(outcome, model, questions) for _ in range(_THREADS)))

    assert asyncio.run(ask()) == [expected] * _THREADS


@VERDICTS
def test_unlearning_and_evaluating_one_model(questions: Path) -> None:
    """What is evaluated is the model before or after; in between, others wait."""
    model = runs.model("llama")
    options = {"tasks": questions, "tokenizer": tiny_models.tokenizer()}
    model.resize_token_embeddings(tiny_models.VOCABULARY)
    before, flags = evaluate_in_place(model, options["tokenizer"], tasks=questions), snapshot(model)
    config = RMUConfig(layer_id=2, update_layer_ids=(1, 2), steering_coeff=20.0, max_steps=4, mode="masked")
    calls = [
        lambda: runs.unlearn(model, config),
        *[lambda: evaluate_in_place(model, options["tokenizer"], tasks=questions)] * 3,
    ]
    _, *found = in_threads(calls)
    after = evaluate_in_place(model, options["tokenizer"], tasks=questions)
    for numbers in (before, after, *found):
        del numbers["wmdp_fast_seconds"]
    assert all(numbers in (before, after) for numbers in found)
    assert snapshot(model) == flags


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("engine", ["trie", "padded"])
def test_the_default_dtype_changes_nothing(questions: Path, dtype: torch.dtype, engine: str) -> None:
    model = tiny_models.build("llama")
    expected = outcome(model, questions, engine=engine)
    torch.set_default_dtype(dtype)
    try:
        np.testing.assert_array_equal(outcome(model, questions, engine=engine), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("engine", ["trie", "padded"])
def test_the_default_device_changes_nothing(questions: Path, engine: str) -> None:
    model = tiny_models.build("llama")
    expected = outcome(model, questions, engine=engine)
    with torch.device("meta"):
        np.testing.assert_array_equal(outcome(model, questions, engine=engine), expected)


@VERDICTS
def test_unlearning_with_another_default_dtype() -> None:
    config = RMUConfig(layer_id=2, update_layer_ids=(1, 2), steering_coeff=20.0, max_steps=3, mode="masked")
    model = runs.model("llama")
    expected = runs.unlearn(copy.deepcopy(model), config).tensors
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = runs.unlearn(model, config).tensors
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


def test_loading_waits_for_passes_and_passes_for_loading() -> None:
    events: list[str] = []
    started = threading.Event()

    def load() -> None:
        started.set()
        with loading():
            events.append("load")
            time.sleep(0.05)
            events.append("loaded")

    with computing():
        thread = threading.Thread(target=load)
        thread.start()
        started.wait()
        time.sleep(0.05)
        with computing():  # a pass in a pass does not wait for who waits for it
            events.append("pass")
    thread_2 = threading.Thread(target=_pass, args=(events,))
    thread_2.start()
    for one in (thread, thread_2):
        one.join(timeout=10)
    assert events == ["pass", "load", "loaded", "later pass"]


def _pass(events: list[str]) -> None:
    time.sleep(0.02)
    with computing():
        events.append("later pass")


def test_wrappers_and_parts_of_a_model_are_one_model() -> None:
    model = tiny_models.build("llama")
    peft = pytest.importorskip("peft")
    adapter = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(target_modules=["q_proj"]))
    for whole, others in (
        (model, [model.model, model.base_model]),
        (adapter, [adapter.get_base_model(), adapter.get_base_model().model]),
    ):
        for other in others:
            with ThreadPoolExecutor(1) as pool:
                with only_user(whole):
                    entered = pool.submit(_enter, other)
                    time.sleep(0.02)
                    assert not entered.done()
                assert entered.result(timeout=10)
    with only_user(model), ThreadPoolExecutor(1) as pool:
        assert pool.submit(_enter, tiny_models.build("llama")).result(timeout=10)


def _enter(model: torch.nn.Module) -> bool:
    with only_user(model):
        return True
