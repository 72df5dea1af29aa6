"""The kernels for GPUs, on a GPU if there is one, else in Triton's interpreter on a CPU, which knows no bfloat16."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from tests.conftest import CHECKOUT
from tests.reference import trie as reference
from tests.support import tiny_models
from tests.support.tries import layout_of, tries
from wmdp_fast.models.attention.layout import Layout

pytest.importorskip("triton")

from wmdp_fast.models.attention import gpu, gpu_forward
from wmdp_fast.models.fused import gates
from wmdp_fast.models.fused import gpu_kernels as gpu_parts

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
# On a GPU most of them take a compilation of their own.
EXAMPLES = 12

# Largest relative error of a number's last digits, times a few.
TOLERANCE = {torch.float32: 4e-6, torch.float16: 2e-3} | ({torch.bfloat16: 2e-2} if ON_GPU else {})
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)

# Of queries and keys, and of values. Large products in float32 take a GPU's compiler very long.
some_sizes = st.sampled_from(
    [(8, 8), (8, 6), (40, 72), *([(64, 64), (128, 128), (192, 128), (256, 256)] if ON_GPU else [])]
)

some_tries = st.one_of(tries(), tries(longest=40 if not ON_GPU else 400))


@DTYPES
@settings(max_examples=EXAMPLES, deadline=None)
@given(
    some_tries,
    st.sampled_from([7, 16, 10_000]),
    st.sampled_from([(4, 4), (4, 2), (3, 1)]),
    st.sampled_from([None, 1, 5, 70]),
    st.sampled_from([None, 3.0]),
    st.booleans(),
    some_sizes,
)
def test_attention_is_dense_attention(dtype, rows, budget, heads, window, softcap, with_sinks, sizes) -> None:
    assume(dtype != torch.float32 or max(sizes) <= 72)
    generator = torch.Generator().manual_seed(len(rows))

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(DEVICE, dtype)

    sinks = drawn(heads[0]) if with_sinks else None
    options = {"scale": sizes[0] ** -0.5, "softcap": softcap, "sinks": sinks}
    carried: list[tuple[torch.Tensor, torch.Tensor]] = []
    for batch in reference.pack(rows, budget, 1000):
        tokens = len(batch.input_ids)
        query = drawn(tokens, heads[0], sizes[0]).transpose(0, 1)
        own = [drawn(tokens, heads[1], size).transpose(0, 1) for size in sizes]
        runs = [*carried, (own[0], own[1])]
        found = gpu.attend_on_gpu(query, runs, layout_of(batch), window=window, **options)
        keys, values = (torch.cat(parts, dim=1) for parts in zip(*runs, strict=True))
        seen = reference.visible(batch.segments, batch.num_carried, window)
        arguments = [tensor.float().cpu() for tensor in (query, keys, values)]
        on_cpu = options | {"sinks": None if sinks is None else sinks.float().cpu()}
        expected = reference.dense_attention(*arguments, seen, **on_cpu)
        torch.testing.assert_close(found.float().cpu(), expected, atol=TOLERANCE[dtype], rtol=5 * TOLERANCE[dtype])
        kept = [i for start, end in batch.keep for i in range(start, end)]
        carried = [(keys[:, kept], values[:, kept])] if kept else []


@DTYPES
@settings(max_examples=EXAMPLES, deadline=None)
@given(
    some_tries,
    st.sampled_from([(4, 4), (4, 2), (3, 1)]),
    st.sampled_from([None, 1, 5, 70]),
    st.sampled_from([None, 3.0]),
    st.booleans(),
    some_sizes,
)
def test_its_gradient_is_that_of_dense_attention(dtype, rows, heads, window, softcap, with_sinks, sizes) -> None:
    assume(dtype != torch.float32 or max(sizes) <= 72)
    generator = torch.Generator().manual_seed(len(rows))
    (batch,) = reference.pack(rows, 10_000, 10_000)
    tokens = len(batch.input_ids)
    shapes = [(tokens, heads[0], sizes[0]), (tokens, heads[1], sizes[0]), (tokens, heads[1], sizes[1])]
    tensors = [torch.randn(shape, generator=generator).to(dtype).transpose(0, 1) for shape in shapes]
    tensors += [torch.randn(heads[0], generator=generator).to(dtype)] if with_sinks else []
    weights = torch.randn(tokens, heads[0], sizes[1], generator=generator).to(dtype)
    options = {"scale": sizes[0] ** -0.5, "softcap": softcap}

    mine = [tensor.to(DEVICE).requires_grad_() for tensor in tensors]
    sinks = mine[3] if with_sinks else None
    layout = layout_of(batch)
    out = gpu.attend_on_gpu(mine[0], [(mine[1], mine[2])], layout, window=window, sinks=sinks, **options)
    found = torch.autograd.grad((out.float() * weights.float().to(DEVICE)).sum(), mine)

    theirs = [tensor.float().requires_grad_() for tensor in tensors]
    seen = reference.visible(batch.segments, 0, window)
    sinks = theirs[3] if with_sinks else None
    expected = reference.dense_attention(*theirs[:3], seen, sinks=sinks, **options)
    for gradient, other in zip(found, torch.autograd.grad((expected * weights.float()).sum(), theirs), strict=True):
        scale = max(1.0, float(other.abs().max()))
        atol = 8 * TOLERANCE[dtype] * scale
        torch.testing.assert_close(gradient.float().cpu(), other, atol=atol, rtol=8 * TOLERANCE[dtype])


def test_there_is_no_gradient_through_what_was_carried_over() -> None:
    query = torch.randn(1, 3, 16, device=DEVICE).requires_grad_()
    runs = [(torch.randn(1, n, 16, device=DEVICE), torch.randn(1, n, 16, device=DEVICE)) for n in (2, 3)]
    layout = Layout(np.arange(2, 5), 2, np.array([[0, 2, 5, 0], [2, 5, 5, 2]]), np.zeros((0, 2), dtype=np.int64))
    with pytest.raises(ValueError, match="carried over has no gradient"):
        gpu.attend_on_gpu(query, runs, layout, scale=1.0)


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(tries(), tries(longest=150)),
    st.sampled_from([3, 7, 16, 1000]),
    st.sampled_from([None, 1, 2, 5, 70]),
    st.sampled_from([(1, 1), (2, 3), (16, 16), (128, 64)]),
)
def test_tiles_have_what_their_tokens_see(rows, budget, window, blocks) -> None:
    block_m, block_n = blocks
    for batch in reference.pack(rows, budget, 1000):
        layout = layout_of(batch)
        tiles = gpu_forward.Tiles.of(layout, block_m=block_m, block_n=block_n, window=window)
        seen = reference.visible(batch.segments, batch.num_carried, window).numpy()
        assert len(tiles.offsets) == -(-len(batch.input_ids) // block_m)
        assert tiles.offsets[0, 0] == 0
        assert tiles.offsets[-1, 2] == len(tiles.runs)
        for tile, (first, other, end) in enumerate(tiles.offsets.tolist()):
            by_tile = seen[tile * block_m : (tile + 1) * block_m]
            looked_at = np.zeros(seen.shape[1], dtype=int)
            for start, stop in tiles.runs[first:end].tolist():
                assert start < stop
                looked_at[start:stop] += 1
            # No key twice, and none left out that a token sees.
            assert looked_at.max() <= 1
            assert (looked_at >= by_tile.any(axis=0)).all()
            for start, stop in tiles.runs[first:other].tolist():
                assert (stop - start) % block_n == 0
                assert by_tile[:, start:stop].all()


def test_documents_one_behind_another_see_nothing_of_each_other() -> None:
    layout = Layout.of_documents([3, 1, 5])
    tiles = gpu_forward.Tiles.of(layout, block_m=4, block_n=2, window=None)
    assert tiles.offsets.tolist() == [[0, 0, 1], [1, 1, 2], [2, 2, 3]]
    assert tiles.runs.tolist() == [[0, 4], [4, 8], [4, 9]]


@DTYPES
@pytest.mark.parametrize("size", [8, 100, 576])
@pytest.mark.parametrize("kind", [LlamaRMSNorm, Gemma2RMSNorm])
def test_a_norm_is_transformers(dtype, size, kind) -> None:
    torch.manual_seed(size)
    norm = kind(size).to(DEVICE, dtype)
    norm.weight.data.normal_()
    epsilon = norm.eps if kind is Gemma2RMSNorm else norm.variance_epsilon
    form = {"offset": 1.0, "rounds_first": False} if kind is Gemma2RMSNorm else {"offset": 0.0, "rounds_first": True}
    for rows in (torch.randn(2, 7, size), torch.randn(9, 3, size)[:, 1], torch.randn(1, 1000, size)):
        x = rows.to(DEVICE, dtype)
        found = gpu_parts.rms_norm(x, norm.weight.detach(), epsilon=epsilon, **form)
        torch.testing.assert_close(found, norm(x), atol=0, rtol=TOLERANCE[dtype])


@DTYPES
@pytest.mark.parametrize("heads", [1, 3, 8])
@pytest.mark.parametrize("size", [8, 24, 128])
def test_a_rotation_is_transformers_to_the_bit(dtype, heads, size) -> None:
    torch.manual_seed(heads)
    q, k = (torch.randn(1, 11, n, size).transpose(1, 2).to(DEVICE, dtype) for n in (heads, 2))
    cos, sin = (turned.to(DEVICE, dtype) for turned in (torch.randn(1, 11, size).cos(), torch.randn(1, 11, size).sin()))
    for rows, expected in zip((q, k), apply_rotary_pos_emb(q, k, cos, sin), strict=True):
        assert torch.equal(gpu_parts.rotate(rows[0], cos[0], sin[0]), expected[0])
        other_order = rows[0].transpose(1, 2).contiguous().transpose(1, 2)
        assert torch.equal(gpu_parts.rotate(other_order, cos[0], sin[0]), expected[0])


@DTYPES
@pytest.mark.parametrize("shape", [(1,), (3, 5000), (2, 4096)])
def test_a_gate_is_torchs(dtype, shape) -> None:
    torch.manual_seed(0)
    opened, inner = (3 * torch.randn(shape).to(DEVICE, dtype) for _ in range(2))
    expected = torch.nn.functional.silu(opened) * inner
    torch.testing.assert_close(gpu_parts.silu_times(opened, inner), expected, atol=1e-6, rtol=TOLERANCE[dtype])


@pytest.mark.parametrize(("family", "fits"), [("llama", True), ("qwen3", True), ("gemma2", False)])
def test_only_a_block_whose_gate_is_silu_is_computed_so(family, fits) -> None:
    block = tiny_models.build(family, torch.float32).to(DEVICE).model.layers[0].mlp
    assert gates._gives_the_same(block, gates._on_gpu, gates._GPU_TOLERANCE[torch.float32]) is fits


def test_the_kernels_compile_for_gpus_and_fit_into_their_memory() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "error::UserWarning", "-m", "tests.support.gpu_compilation"]
    ran = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=environment, cwd=CHECKOUT
    )
    assert ran.returncode == 0, ran.stderr
    lines = [line.split() for line in ran.stdout.splitlines()]
    assert len(lines) == 24
    for *_, needed, there in lines:
        assert int(needed) <= int(there)
