"""All attacks by name, and those that users write."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wmdp_fast.robustness.attacks.ablate import Ablate
from wmdp_fast.robustness.attacks.ask import Ask
from wmdp_fast.robustness.attacks.calibrate import Calibrate
from wmdp_fast.robustness.attacks.cloze import Cloze
from wmdp_fast.robustness.attacks.fewshot import FewShot
from wmdp_fast.robustness.attacks.lens import Lens
from wmdp_fast.robustness.attacks.noise import Noise
from wmdp_fast.robustness.attacks.orders import Orders
from wmdp_fast.robustness.attacks.prompts import Prompts
from wmdp_fast.robustness.attacks.prune import Prune
from wmdp_fast.robustness.attacks.quantize import Quantize
from wmdp_fast.robustness.attacks.relearn import Relearn

if TYPE_CHECKING:
    from collections.abc import Iterable

    from wmdp_fast.robustness.protocol import Attack

# In the order in which they run and are shown: what costs least first.
_ALL: tuple[type[Attack], ...] = (
    Ask,
    Calibrate,
    Cloze,
    Orders,
    FewShot,
    Prompts,
    Lens,
    Quantize,
    Prune,
    Noise,
    Ablate,
    Relearn,
)
ATTACKS = {attack.name: attack for attack in _ALL}


def attacks_of(names: str | Iterable[str]) -> list[Attack]:
    """The attacks that are meant, `ask` before them.

    Args:
        names: `all`, or names; commas separate several.

    Raises:
        ValueError: One is unknown; lists those that are known.
    """
    texts = [names] if isinstance(names, str) else list(names)
    wanted = [part.strip() for text in texts for part in text.split(",") if part.strip()]
    if not wanted:
        raise ValueError(f"no attack was named; there are {', '.join(ATTACKS)}, and `all` of them")
    found: dict[str, type[Attack]] = {Ask.name: Ask}
    for name in wanted:
        if name == "all":
            found |= ATTACKS
        elif name in ATTACKS:
            found[name] = ATTACKS[name]
        else:
            raise ValueError(f"unknown attack {name!r}; there are {', '.join(ATTACKS)}, and `all` of them")
    return [attack() for attack in found.values()]
