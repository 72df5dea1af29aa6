"""All attacks by name, and those that users write."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wmdp_fast.robustness.attacks.ablate import Ablate
from wmdp_fast.robustness.attacks.ask import Ask
from wmdp_fast.robustness.attacks.calibrate import Calibrate
from wmdp_fast.robustness.attacks.cloze import Cloze
from wmdp_fast.robustness.attacks.fewshot import FewShot
from wmdp_fast.robustness.attacks.gcg import GCG
from wmdp_fast.robustness.attacks.lens import Lens
from wmdp_fast.robustness.attacks.noise import Noise
from wmdp_fast.robustness.attacks.orders import Orders
from wmdp_fast.robustness.attacks.own_file import load_own_attack
from wmdp_fast.robustness.attacks.probe import Probe
from wmdp_fast.robustness.attacks.prompts import Prompts
from wmdp_fast.robustness.attacks.prune import Prune
from wmdp_fast.robustness.attacks.quantize import Quantize
from wmdp_fast.robustness.attacks.relearn import Relearn
from wmdp_fast.robustness.attacks.softprompt import SoftPrompt
from wmdp_fast.runtime.own_code import FORM, own_code

if TYPE_CHECKING:
    from collections.abc import Iterable

    from wmdp_fast.robustness.protocol import Attack, Budget

# In the order in which they run and are shown: what costs least first.
_ALL: tuple[type[Attack], ...] = (
    Ask,
    Calibrate,
    Cloze,
    Orders,
    FewShot,
    Prompts,
    Lens,
    Probe,
    Quantize,
    Prune,
    Noise,
    Ablate,
    Relearn,
    SoftPrompt,
    GCG,
)
ATTACKS = {attack.name: attack for attack in _ALL}

# What `all` has at budget full alone: they cost much and show little of most models.
_OPTIONAL = frozenset({SoftPrompt.name, GCG.name})


def attacks_of(names: str | Iterable[str], budget: Budget = "full") -> list[Attack]:
    """The attacks that are meant, `ask` before them.

    Args:
        names: `all`, names, or attacks of one's own as `FILE.py:CLASS` or `package.module:CLASS`; commas separate
            several.
        budget: How much is tried.

    Raises:
        ValueError: One is unknown, or cannot be loaded; lists those that are known, or says what is wrong.
    """
    texts = [names] if isinstance(names, str) else list(names)
    wanted = [part.strip() for text in texts for part in text.split(",") if part.strip()]
    if not wanted:
        raise ValueError(f"no attack was named; there are {_known()}")
    found: dict[str, Attack] = {Ask.name: Ask()}
    for name in wanted:
        if name == "all":
            left_out = _OPTIONAL if budget != "full" else frozenset()
            found |= {known: attack() for known, attack in ATTACKS.items() if known not in found.keys() | left_out}
        elif name in ATTACKS:
            found.setdefault(name, ATTACKS[name]())
        elif ":" in name or name.endswith(".py"):
            own = load_own_attack(name)
            if own.name in ATTACKS or (own.name in found and type(found[own.name]) is not type(own)):
                raise ValueError(f"{name} is called {own.name}, as another attack is; give it another name")
            found[own.name] = own
        else:
            raise ValueError(f"unknown attack {name!r}; there are {_known()}")
    return list(found.values())


def own_hashes(attacks: Iterable[Attack]) -> dict[str, str]:
    """Hashes of the files of attacks that are not of this package, by the attack's name."""
    return {attack.name: file["sha256"] for attack in attacks for file in own_code(attack)}


def _known() -> str:
    return f"{', '.join(ATTACKS)}, `all` of them, and {FORM} for one of your own"
