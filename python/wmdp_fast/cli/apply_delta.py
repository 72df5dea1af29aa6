"""`wmdp-fast apply-delta`: makes an unlearned checkpoint from its base and the changed tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

SUMMARY = "Make an unlearned checkpoint from its base and a delta."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `wmdp-fast apply-delta`."""
    parser.add_argument("base", metavar="BASE", help="folder of the checkpoint that was unlearned")
    parser.add_argument("delta", metavar="DELTA", help="delta.safetensors, or the folder with it")
    parser.add_argument("output", metavar="OUT", help="folder to make")


def run(arguments: argparse.Namespace) -> int:
    """Writes the checkpoint."""
    from wmdp_fast.checkpoints.checkpoint import apply_delta

    print(apply_delta(arguments.base, arguments.delta, arguments.output))
    return 0
