"""When two ways of scoring agree."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def tolerance(loglikelihood: NDArray[np.float64]) -> NDArray[np.float64]:
    """Largest difference to each log-likelihood, computed in float32, that is none; in nats.

    1e-4, that of float32 sums in another order, and two bits of the result, which adds up many tokens. For weights of
    16 bits there is no such bound.
    """
    return 1e-4 + 2.0**-22 * np.abs(loglikelihood)
