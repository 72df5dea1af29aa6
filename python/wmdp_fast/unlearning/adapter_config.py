"""The settings of methods that can train LoRA factors."""

from __future__ import annotations

from dataclasses import dataclass

from wmdp_fast.unlearning.lora import LoRA
from wmdp_fast.unlearning.training_config import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class AdapterConfig(TrainingConfig):
    """The settings of a method that can train factors in place of the model's own parameters.

    Attributes:
        lora: Low-rank factors to train in place of `parameters` (LoRA), such as
            `r=16,alpha=32,dropout=0,targets=q_proj+v_proj`; targets are all linear layers unless they are named. Needs
            PEFT.
        save_adapter: Whether the factors are saved as an adapter for PEFT; otherwise they are merged into the
            checkpoint's tensors.

    Example:
        >>> from wmdp_fast import AdapterConfig, NPOConfig
        >>> issubclass(NPOConfig, AdapterConfig)
        True
        >>> config = NPOConfig(lora="r=8,targets=q_proj+v_proj", save_adapter=True)
        >>> config.lora.targets
        ('q_proj', 'v_proj')
    """

    lora: LoRA | None = None
    save_adapter: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.lora, str):
            object.__setattr__(self, "lora", LoRA.parse(self.lora))
        super().__post_init__()
        if self.save_adapter and self.lora is None:
            raise ValueError("save_adapter is for runs with lora, which is not set")
        if self.save_adapter and self.save_dtype != "auto":
            raise ValueError("save_dtype is for the checkpoint's tensors; an adapter is saved as it was trained")
