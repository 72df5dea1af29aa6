"""Rotary position embedding in one pass beside that of transformers."""

from __future__ import annotations

import contextvars
import sys
import threading

import pytest
import torch

from tests.support import tiny_models
from wmdp_fast.models.fused.rotary import fused_rotary


def function_of(family: str):
    """The file of a family's classes and its function."""
    file = sys.modules[type(tiny_models.loaded(family).model).__module__]
    return file, file.apply_rotary_pos_emb


def rows_and_angles(size: int, angles: int, batch: int = 1) -> list[torch.Tensor]:
    q, k = (torch.randn(batch, 40, heads, size).transpose(1, 2) for heads in (3, 1))
    turned = torch.randn(batch, 40, angles)
    return [q, k, turned.cos(), turned.sin()]


@pytest.mark.parametrize("family", ["llama", "mixtral", "qwen3", "gemma2", "phi3", "olmo2", "gpt_neox", "granite"])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("angles", [8, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_gets_the_same_bits(family: str, batch: int, angles: int, dtype: torch.dtype) -> None:
    file, original = function_of(family)
    arguments = [tensor.to(dtype) for tensor in rows_and_angles(8, angles, batch)]
    with torch.no_grad(), fused_rotary(tiny_models.build(family, dtype)):
        assert file.apply_rotary_pos_emb is not original
        if angles == 8 or family in ("phi3", "gpt_neox"):  # the others do not rotate a part
            for found, expected in zip(file.apply_rotary_pos_emb(*arguments), original(*arguments), strict=True):
                assert torch.equal(found, expected)
    assert file.apply_rotary_pos_emb is original


def test_other_numbers_and_other_threads_get_the_models_own() -> None:
    file, original = function_of("llama")
    arguments = rows_and_angles(8, 8)
    calls = []

    def counted(*args: object, **kwargs: object) -> object:
        calls.append(args)
        return original(*args, **kwargs)

    with fused_rotary(tiny_models.loaded("llama").model):
        file.apply_rotary_pos_emb.original = counted
        # One that was there before the run. One started within it would belong to it in Python without the global lock.
        thread = threading.Thread(target=contextvars.Context().run, args=(file.apply_rotary_pos_emb, *arguments))
        thread.start()
        thread.join()
        assert len(calls) == 1
        file.apply_rotary_pos_emb(*(tensor.half() for tensor in arguments))
        file.apply_rotary_pos_emb(*arguments, unsqueeze_dim=1)
        assert len(calls) == 3
        file.apply_rotary_pos_emb(*arguments)
        assert len(calls) == 3
        file.apply_rotary_pos_emb.original = original


def test_runs_may_overlap_and_end_in_any_order() -> None:
    file, original = function_of("llama")
    first, second = (fused_rotary(tiny_models.loaded("llama").model) for _ in range(2))
    first.__enter__()
    fused = file.apply_rotary_pos_emb
    with second:
        first.__exit__(None, None, None)
        assert file.apply_rotary_pos_emb is fused
    assert file.apply_rotary_pos_emb is original


def test_a_function_that_computes_bfloat16_in_float32_is_left_alone_there() -> None:
    file, original = function_of("llama")
    single, half = (tiny_models.build("llama", dtype) for dtype in (torch.float32, torch.bfloat16))

    def upcast(q, k, cos, sin):
        turned = original(*(tensor.float() for tensor in (q, k, cos, sin)))
        return tuple(one.to(q.dtype) for one in turned)

    file.apply_rotary_pos_emb = upcast
    try:
        with fused_rotary(half):
            assert file.apply_rotary_pos_emb is upcast
        with fused_rotary(single):
            fused = file.apply_rotary_pos_emb
            with fused_rotary(half):
                assert file.apply_rotary_pos_emb is fused
            assert {dtype for _, dtype in fused.kinds} == {torch.float32}
        assert file.apply_rotary_pos_emb is upcast
    finally:
        file.apply_rotary_pos_emb = original


@pytest.mark.parametrize("family", ["gpt_oss", "gpt2"])
def test_what_rotates_in_another_way_or_not_at_all_is_left_alone(family: str) -> None:
    model = tiny_models.loaded(family).model
    file = sys.modules[type(model).__module__]
    original = getattr(file, "apply_rotary_pos_emb", None)
    with fused_rotary(model):
        assert getattr(file, "apply_rotary_pos_emb", None) is original
