"""Parts of a model that are faster in one piece, for the time of a run.

| file     | what is replaced          | on a CPU                      | on a GPU              | proven before use     |
| -------- | ------------------------- | ----------------------------- | --------------------- | --------------------- |
| `linear` | linear layers             | oneDNN on some: float32       | stay as they are      | torch's own class     |
| `gates`  | gated feed-forward blocks | as these, or between products | between the products  | 2 rows, to a rounding |
| `norms`  | root-mean-square norms    | one pass: float32             | one pass              | 2 rows, to a rounding |
| `rotary` | rotary position embedding | one pass: float32, bfloat16   | one pass              | 3 tokens, to the bit  |

The first three are modules. One that passed its trial is given another `forward`, on itself and not on its class, and
that is taken off again afterwards (`trials`, `forwards`). The last is a function in the file of a model's class: it is
replaced there for the thread of the run, and put back when the last run that needs it ends. `last_layer` leaves out of
the last layer what nobody reads. `compiled` is the user's choice in place of these: it has torch compile feed-forward
blocks and norms.

Training is another matter: there `linear` is all that is faster, and `lean_gates` has gated blocks keep half as much
for their gradients.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from wmdp_fast.models.fused.gates import GATED_BLOCKS
from wmdp_fast.models.fused.last_layer import only_read_rows, row_wise_parts
from wmdp_fast.models.fused.linear import LINEAR_LAYERS
from wmdp_fast.models.fused.norms import NORMS
from wmdp_fast.models.fused.rotary import fused_rotary
from wmdp_fast.models.fused.trials import Trials, replaced_modules

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

MODULES = (LINEAR_LAYERS, GATED_BLOCKS, NORMS)


@contextmanager
def fused_parts(
    model: nn.Module, trials: Trials | None = None, *, last_layer: nn.Module | None = None
) -> Iterator[None]:
    """Inside, what is faster in one piece is computed so, without compiling it first; for use without gradients.

    On a GPU that takes Triton. What is not in the table above, or failed its trial, stays as it is.

    Args:
        model: The model.
        trials: Those of earlier calls with the same model, so that nothing is tried again; filled here.
        last_layer: Its last layer, where only some tokens' outputs are read, see `last_layer.reading`.
    """
    trials = Trials() if trials is None else trials
    row_wise = [] if last_layer is None else row_wise_parts(last_layer, trials)
    with replaced_modules(model, MODULES, trials), fused_rotary(model, trials), only_read_rows(row_wise):
        yield
