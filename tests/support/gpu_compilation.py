"""Compiles the kernels for GPUs that need not be there: `python -m tests.support.gpu_compilation`, without interpreter.

Prints a line for each kernel with the fast memory it takes of what a multiprocessor has, in bytes.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from wmdp_fast.models.attention import gpu_forward
from wmdp_fast.models.attention import gpu_gradient as gpu_attention_gradient
from wmdp_fast.models.fused import gpu_kernels

# Compute capability, and bytes of shared memory that a block may ask for: of a consumer's card and of an H100.
GPUS = {89: 101_376, 90: 232_448}
TABLES = ("offsets", "runs", "subtree_ends", "positions")
STATISTICS = ("lse", "delta")
NUMBERS = ("scale", "softcap_scale", "softcap", "epsilon", "offset")
OPTIONS = ("num_stages", "num_warps", "enable_fp_fusion")


def compiled(kernel: Any, tensors: tuple[str, ...], given: dict[str, Any], capability: int) -> int:
    """The bytes of shared memory of a kernel for bfloat16; `tensors` are its arguments of that type."""
    constants = {name: value for name, value in given.items() if name in kernel.arg_names}
    types = dict.fromkeys(tensors, "*bf16") | dict.fromkeys(TABLES, "*i32") | dict.fromkeys(STATISTICS, "*fp32")
    types |= dict.fromkeys(NUMBERS, "fp32") | dict.fromkeys(constants, "constexpr")
    signature = {name: types.get(name, "i32") for name in kernel.arg_names}
    # As they are when a model runs.
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*") or name.endswith(("_head", "_token", "stride", "count"))
    }
    options = {name: given[name] for name in OPTIONS if name in given}
    source = ASTSource(kernel, signature, constants, aligned)
    shared: int = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).metadata.shared
    return shared


def main() -> None:
    """Compiles all kernels for all GPUs."""
    for capability, memory in GPUS.items():
        properties = SimpleNamespace(shared_memory_per_block_optin=memory)
        torch.cuda.get_device_properties = lambda _device, found=properties: found  # type: ignore[assignment]
        for size in (64, 128, 256):
            query: Any = SimpleNamespace(is_cuda=True, device=None, shape=(8, 1, size), element_size=lambda: 2)
            shape = {"group": 4, "size": size, "value_size": size, "precision": "tf32"}
            shape |= {"has_window": True, "has_softcap": True, "has_sinks": True}
            tensors = ("query", "carried_key", "carried_value", "key", "value", "out", "sinks", "gradient")
            tensors += ("dq", "dk", "dv")
            forward = shape | gpu_forward._blocks(query, size)
            backward = shape | gpu_attention_gradient._blocks(query, size)
            for kernel, given in (
                (gpu_forward._attend, forward),
                (gpu_attention_gradient._dq_kernel, backward),
                (gpu_attention_gradient._dkdv_kernel, backward),
            ):
                print(capability, kernel.__name__, size, compiled(kernel, tensors, given, capability), memory)
        parts = ("rows", "weight", "cos", "sin", "opened", "inner", "out")
        for kernel, given in (
            (gpu_kernels._rms_norm, {"size": 4096, "rounds_first": True, "BLOCK_M": 1, "BLOCK_N": 4096}),
            (gpu_kernels._rotate, {"heads": 9, "half": 32, "BLOCK_M": 16, "BLOCK_N": 32}),
            (gpu_kernels._silu_times, {"BLOCK_N": 4096}),
        ):
            fused = {"enable_fp_fusion": kernel is not gpu_kernels._rotate}
            print(capability, kernel.__name__, 0, compiled(kernel, parts, given | fused, capability), memory)


if __name__ == "__main__":
    main()
