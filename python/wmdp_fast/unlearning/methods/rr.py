"""RR, representation rerouting or circuit breakers: activations on forget text are turned away from what they were."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from wmdp_fast.unlearning.adapter_config import AdapterConfig
from wmdp_fast.unlearning.preset import Preset
from wmdp_fast.unlearning.training_config import SearchAxis, TrainingConfig, check_number, check_whole

if TYPE_CHECKING:
    from wmdp_fast.unlearning.method import Method, Setup


@dataclass(frozen=True, kw_only=True)
class RRConfig(AdapterConfig):
    """The settings of RR: `c_s * mean relu(cos(h, h0)) + c_r * mean ||h' - h0'||`.

    h are the outputs of the target layers on forget documents, h' those of all layers up to the highest of them on
    retain documents, h0 and h0' the original model's; means are over layers and real tokens. Over the T steps of a run
    the weights go linearly from forgetting to holding: at step t, from 0, `c_r = a * t / 2T` and
    `c_s = a * (1 - t / 2T)`. Nothing above the highest target layer is loaded.

    Attributes:
        target_layers: Layers, counted from 0, whose outputs are rerouted. Transformers' `hidden_states[l]` is the
            output of layer l - 1.
        update_layer_ids: Layers whose parameters are trained; None is all up to the highest target.
        rerouting_coeff: a, the sum of the weights of both terms.
        learning_rate: Of AdamW: the largest one of the run.
        max_steps: T; fewer if the corpora end before.
        seed: Of the noise that the first step starts with.
        master_weights: Whether the optimizer keeps weights and moments in float32.

    Example:
        >>> from wmdp_fast import RRConfig
        >>> RRConfig(target_layers=(9, 19)).depth  # so many layers are loaded
        20
    """

    method_name: ClassVar[str] = "rr"
    optimizer: ClassVar[Literal["adamw_hf", "adamw_torch"]] = "adamw_torch"
    search_axes: ClassVar[tuple[SearchAxis, ...]] = (SearchAxis("rerouting_coeff"), *TrainingConfig.search_axes)
    activation_metrics: ClassVar[tuple[str, ...]] = ("forget_cosine", "retain_distance")
    why_kinds: ClassVar[str] = "its loss is of the activations of all tokens"
    shares_batches: ClassVar[bool] = True

    target_layers: tuple[int, ...] = (9, 19)
    update_layer_ids: tuple[int, ...] | None = None
    rerouting_coeff: float = 10.0
    parameters: str = "mlp"
    learning_rate: float = 1e-4
    grad_clip: float | None = 1.0
    master_weights: bool = True

    def __post_init__(self) -> None:
        for name in ("target_layers", "update_layer_ids"):
            if isinstance(value := getattr(self, name), (list, int)):
                object.__setattr__(self, name, (value,) if isinstance(value, int) else tuple(value))
        super().__post_init__()
        check_number("rerouting_coeff", self.rerouting_coeff)
        if not self.target_layers:
            raise ValueError("target_layers is empty, so no layer would be rerouted")
        for name in ("target_layers", "update_layer_ids"):
            layers = getattr(self, name) or ()
            for layer in layers:
                check_whole(name, layer, least=0)
            if len(set(layers)) < len(layers):
                raise ValueError(f"{name} names a layer twice: {', '.join(map(str, layers))}")
        self._check_updated()

    @property
    def depends_on_total(self) -> bool:
        """The weights of both terms do."""
        return True

    def method(self, setup: Setup) -> Method:
        """RR on a model."""
        from wmdp_fast.unlearning.methods.rerouting import Rerouting

        return Rerouting(setup, self.target_layers, self.rerouting_coeff, seed=self.seed)

    def trained_layers(self, _num_layers: int, /) -> tuple[int, ...]:
        """Those given, or all up to the highest target."""
        return tuple(range(self.depth)) if self.update_layer_ids is None else tuple(sorted(self.update_layer_ids))

    @property
    def depth(self) -> int:
        """The layers up to the highest target."""
        return max(self.target_layers) + 1

    def _check_updated(self) -> None:
        if self.update_layer_ids is None:
            return
        if not self.update_layer_ids:
            raise ValueError("update_layer_ids is empty, so nothing would be trained")
        if (highest := max(self.update_layer_ids)) >= self.depth:
            raise ValueError(
                f"update_layer_ids has layer {highest}, which is above the highest target layer, {self.depth - 1}, so"
                " that nothing in the loss depends on it"
            )
        if (lowest := min(self.update_layer_ids)) > (target := min(self.target_layers)):
            raise ValueError(
                f"target_layers has layer {target}, which is below the lowest trained layer, {lowest}, so that its"
                " output cannot change"
            )


PRESETS = {
    one.name: one
    for one in (
        Preset(
            "llama-3-8b",
            "meta-llama/Meta-Llama-3-8B-Instruct",
            {
                "lora": "r=16,alpha=16,dropout=0.05",
                "target_layers": (9, 19),
                "rerouting_coeff": 10.0,
                "learning_rate": 1e-4,
                "batch_size": 16,
                "max_steps": 150,
            },
            "Zou et al. 2024 (arXiv:2406.04313), scripts of GraySwanAI/circuit-breakers",
            "Its forget set were harmful requests with answers, its retain set chats and refusals: no WMDP score is"
            " published. Its target layers 10 and 20 count the embedding as 0. Its retain term has the embeddings too,"
            " which do not change, and counts padding as tokens that have not moved.",
        ),
    )
}
