"""The layers below those that a run trains, left on the disk, and the memory for what they give out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wmdp_fast.runtime.memory import give_back, in_gigabytes

if TYPE_CHECKING:
    from collections.abc import Hashable

    from torch import Tensor

    from wmdp_fast.models.streamed import StreamedModel


@dataclass(frozen=True)
class LayersBelow:
    """The layers below the first trained one, which are read when they are run.

    Batches go through them together, so that they are read once for as many as there is memory for what they give out:
    a *window*.

    Attributes:
        streamed: The layers.
        room: Bytes that what a window gives out may take.
        tokens: Tokens of all batches of the run.
        held: The window at hand: by batch, what enters the first trained layer. What is taken out is computed again.
    """

    streamed: StreamedModel
    room: int
    tokens: int
    held: dict[Hashable, Tensor] = field(default_factory=dict)

    @property
    def about(self) -> str:
        """What the run says of it before it begins."""
        skeleton, count = self.streamed.skeleton, len(self.streamed.order)
        parts = (*skeleton.layers[:count], skeleton.embedding)
        resident = [skeleton.layers[index] for index in self.streamed.order if index in self.streamed.resident]
        once = sum(part.stored_bytes for part in parts) - sum(part.stored_bytes for part in resident)
        windows = -(-self.tokens * bytes_of_a_token(self.streamed) // self.room)
        layers = f"{count} layer{'' if count == 1 else 's'} of up to {in_gigabytes(max(p.nbytes for p in parts[:-1]))}"
        return (
            f"streaming the {layers} below layer {count} in memory of {in_gigabytes(self.streamed.memory)}:"
            f" {in_gigabytes(once)} to read for each of about {windows} window{'' if windows == 1 else 's'} of batches"
        )

    def give_back(self) -> None:
        """Lets the process keep no memory that it does not use; to be called before something large is computed."""
        if self.streamed.skeleton.device.type == "cpu":
            give_back()


def bytes_of_a_token(streamed: StreamedModel) -> int:
    """What the layers below give out, and a quarter for what layers are called with besides while a window is made."""
    width: int = streamed.skeleton.decoder.hidden_size
    return 5 * width * streamed.skeleton.dtype.itemsize // 4
