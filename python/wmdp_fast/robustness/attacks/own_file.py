"""An attack of one's own, from a file or a module that is not this package's."""

from __future__ import annotations

from typing import get_args

from wmdp_fast.robustness.protocol import Access, Attack
from wmdp_fast.runtime.own_code import load_own


def load_own_attack(spec: str) -> Attack:
    """The attack that a file or a module holds.

    Args:
        spec: `FILE.py:CLASS` or `package.module:CLASS`.

    Raises:
        ValueError: There is no such class, as `load_own` has it, or it is no complete `Attack`; says what is wrong,
            with file and line where there is one.
    """
    found, text = load_own(
        spec, Attack, base_name="wmdp_fast.robustness.protocol.Attack", called="the attack", kind="attack"
    )
    for name, told in (("name", "what records and tables call it"), ("summary", "what it does, in a line")):
        if not isinstance(getattr(found, name, None), str) or not getattr(found, name):
            raise ValueError(f"{text} lacks {name}: {told}")
    if getattr(found, "access", None) not in get_args(Access):
        raise ValueError(f"{text} lacks access: what an attacker needs, one of {', '.join(get_args(Access))}")
    try:
        attack: Attack = found()
    except TypeError as error:
        raise ValueError(f"{text} must be made without arguments: {error}") from None
    return attack
