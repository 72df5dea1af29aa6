"""A model file for lighteval's `custom` command: log-likelihoods by token trie.

::

    lighteval custom MODEL path/to/lighteval_model.py "wmdp:bio|0" --custom-tasks path/to/lighteval_tasks.py

where MODEL is a folder or a name on the hub. Options come from the environment, as lighteval's command has none for
them: `WMDP_FAST_DTYPE`, `WMDP_FAST_DEVICE`, `WMDP_FAST_SCORE_MODE`, `WMDP_FAST_CHAT_TEMPLATE=1`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from lighteval.models.abstract_model import LightevalModel
from lighteval.models.model_output import ModelResponse
from lighteval.tasks.prompt_manager import PromptManager
from lighteval.tasks.requests import SamplingMethod
from lighteval.utils.cache_management import SampleCache, cached

from wmdp_fast._rust import Prompts, Requests
from wmdp_fast.models.load import load_model
from wmdp_fast.prompts.tokenizer import load_tokenizer
from wmdp_fast.scoring.trie import score

if TYPE_CHECKING:
    from lighteval.models.custom.custom_model import CustomModelConfig
    from lighteval.tasks.requests import Doc


class WmdpFastModel(LightevalModel):
    """Scores choices and whole texts; it generates nothing.

    Args:
        config: lighteval's; `model_name` is the model to load.
    """

    DATASET_SPLITS = 1

    def __init__(self, config: CustomModelConfig) -> None:
        self.config = config
        self.loaded = load_model(
            config.model_name,
            dtype=os.environ.get("WMDP_FAST_DTYPE", "auto"),
            device=os.environ.get("WMDP_FAST_DEVICE", "auto"),
        )
        self.score_mode: Any = os.environ.get("WMDP_FAST_SCORE_MODE", "float32")
        if self.score_mode not in ("float32", "model"):
            raise ValueError(f"WMDP_FAST_SCORE_MODE must be float32 or model, not {self.score_mode}")
        chat = os.environ.get("WMDP_FAST_CHAT_TEMPLATE", "") not in ("", "0")
        self.prompt_manager = PromptManager(use_chat_template=chat, tokenizer=self.tokenizer)
        # A chat template writes the special tokens itself.
        self._add_special_tokens = not chat
        self._cache = SampleCache(config)

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer of transformers."""
        return self.loaded.tokenizer

    @property
    def add_special_tokens(self) -> bool:
        """Whether prompts get BOS, if the tokenizer has one."""
        return self._add_special_tokens

    @property
    def max_length(self) -> int:
        """Maximum sequence length of the model."""
        return self.loaded.max_length

    @cached(SamplingMethod.LOGPROBS)
    def loglikelihood(self, docs: list[Doc]) -> list[ModelResponse]:
        """Log-likelihood of each choice of each document, all in one run."""
        contexts = [self.prompt_manager.prepare_prompt(doc) for doc in docs]
        prompts = Prompts.from_contexts(contexts, [doc.choices for doc in docs], [0] * len(docs), source="lighteval")
        encoder = load_tokenizer(
            self.tokenizer,
            prefix_token_id=self.loaded.prefix_token_id,
            add_special_tokens=self.add_special_tokens,
        )
        return self._responses(encoder.encode_requests([prompts], self.max_length), contexts)

    @cached(SamplingMethod.PERPLEXITY)
    def loglikelihood_rolling(self, docs: list[Doc]) -> list[ModelResponse]:
        """Log-likelihood of each document's whole text after BOS, cut on the right to what the model reads."""
        texts = [self.prompt_manager.prepare_prompt(doc) for doc in docs]
        encoded = [self.tokenizer.encode(text, add_special_tokens=False)[: self.max_length] for text in texts]
        prefix = [self.loaded.prefix_token_id]
        requests = Requests.from_tokens([prefix] * len(docs), [[tokens] for tokens in encoded], self.max_length)
        return self._responses(requests, texts)

    def greedy_until(self, docs: list[Doc]) -> list[ModelResponse]:
        """Refuses: this model scores.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            f"{docs[0].task_name} asks for generated text, and this model file only scores: run it with"
            " `lighteval accelerate`"
        )

    def _responses(self, requests: Requests, contexts: list[str]) -> list[ModelResponse]:
        scores = score(self.loaded, requests, score_mode=self.score_mode)
        offsets = requests.choice_offsets.tolist()
        return [
            ModelResponse(
                input=context,
                input_tokens=requests.context(index).tolist(),
                output_tokens=[requests.continuation(choice).tolist() for choice in range(first, stop)],
                logprobs=scores.loglikelihood[first:stop].tolist(),
                argmax_logits_eq_gold=scores.is_greedy[first:stop].tolist(),
            )
            for index, (context, first, stop) in enumerate(zip(contexts, offsets, offsets[1:], strict=False))
        ]
