"""LoRA as a setting: how large the factors are, and which matrices have them. Imports no torch and no PEFT."""

from __future__ import annotations

import re
from dataclasses import dataclass

from wmdp_fast.unlearning.checks import check_number, check_whole

_FORM = "such as r=16,alpha=32,dropout=0,targets=q_proj+v_proj"


@dataclass(frozen=True)
class LoRA:
    """Low-rank factors in place of whole matrices (Hu et al. 2021, arXiv:2106.09685): `W + alpha / r * B @ A`.

    Attributes:
        r: The rank.
        alpha: The factor is `alpha / r`; None is twice the rank.
        dropout: Share of the factors' inputs that is left out in a step, drawn anew each step.
        targets: The linear layers that have factors: ends of their names within a layer (`q_proj`, `mlp.down_proj`), or
            roles (`mlp`, `self_attn`). Empty for all linear layers of the trained layers.

    Raises:
        ValueError: A number is impossible.

    Example:
        >>> from wmdp_fast import LoRA
        >>> LoRA(r=8, targets=("q_proj", "v_proj")) == LoRA.parse("r=8,targets=q_proj+v_proj")
        True
        >>> print(LoRA(r=8))
        r=8,alpha=16,dropout=0
    """

    r: int = 16
    alpha: float | None = None
    dropout: float = 0.0
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_whole("r of lora", self.r, least=1)
        object.__setattr__(self, "alpha", 2 * self.r if self.alpha is None else self.alpha)
        check_number("alpha of lora", self.alpha)
        check_number("dropout of lora", self.dropout, zero_allowed=True)
        if self.dropout >= 1:
            raise ValueError(f"dropout of lora must be below 1, not {self.dropout!r}")
        object.__setattr__(self, "targets", tuple(self.targets))
        if bad := [target for target in self.targets if not re.fullmatch(r"[\w.]+", target)]:
            raise ValueError(f"targets of lora are names of linear layers with + between, not {bad[0]!r}")

    @classmethod
    def parse(cls, text: str) -> LoRA:
        """Reads the setting as it is written on the command line: `r=16,alpha=32,dropout=0,targets=q_proj+v_proj`.

        What is left out has its default.

        Raises:
            ValueError: The text is none; says what is expected.
        """
        given: dict[str, str] = {}
        for part in text.split(","):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals or name not in ("r", "alpha", "dropout", "targets") or name in given:
                raise ValueError(f"lora {text!r}: {part.strip()!r} is no setting of it; write it {_FORM}")
            given[name] = value
        try:
            return cls(
                r=int(given.get("r", 16)),
                alpha=float(given["alpha"]) if "alpha" in given else None,
                dropout=float(given.get("dropout", 0)),
                targets=tuple(given["targets"].split("+")) if "targets" in given else (),
            )
        except ValueError as error:
            raise ValueError(f"lora {text!r}: {error}; write it {_FORM}") from None

    def __str__(self) -> str:
        targets = f",targets={'+'.join(self.targets)}" if self.targets else ""
        alpha, dropout = (str(number).removesuffix(".0") for number in (self.alpha, self.dropout))
        return f"r={self.r},alpha={alpha},dropout={dropout}{targets}"
