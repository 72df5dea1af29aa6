"""lm-eval's `hf` model with this package's tokenizing and scoring: the same arguments, the same numbers, less time.

Importing this module makes the model known to lm-eval as `wmdp-fast`; `wmdp-fast lm-eval ...` is lm-eval's own command
line with that done. Every log-likelihood task of lm-eval gains, not WMDP and MMLU alone. Loading, adapters,
quantization, chat templates and generation are `HFLM`'s own.
"""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from lm_eval import utils
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from wmdp_fast._rust import Prompts, Requests, Tokenizer
from wmdp_fast.exceptions import TokenizerError, WmdpFastWarning
from wmdp_fast.models.load import LoadedModel, wrap_model
from wmdp_fast.prompts.tokenizer import load_tokenizer
from wmdp_fast.scoring.scores import PartialScores
from wmdp_fast.scoring.trie import score

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lm_eval.api.instance import Instance
    from numpy.typing import NDArray

    from wmdp_fast.scoring.scores import ScoreMode
    from wmdp_fast.scoring.trie import Engine

    # Context and continuation as text, or None for a window of a longer text; and the token ids of both.
    TokenRequest = tuple[tuple[str, str] | None, list[int], list[int]]

# Requests of each run that are tokenized both ways before the fast way is trusted: spread over the run, and not ASCII.
_PROBES = 8


@register_model("wmdp-fast")
class FastHFLM(HFLM):  # type: ignore[misc] # lm-eval has no types
    """`HFLM` that scores by token trie.

    Where the fast way would not give `HFLM`'s numbers, `HFLM`'s own way is taken with a warning that says why.
    `batch_size` counts for generation alone: log-likelihoods go by a budget of tokens, which is halved when memory runs
    out.

    Args:
        pretrained: A folder, a name on the hub, or a model in memory (which then needs `tokenizer`).
        engine: `"trie"`, `"padded"`, or `"auto"`: by trie if the model can and proves it.
        token_budget: Maximum tokens per batch, or `"auto"`.
        tp_plan: As `HFLM` has it.
        **kwargs: All other arguments of `HFLM`.

    Raises:
        ValueError: `engine` or `token_budget` is none of the above.
    """

    def __init__(
        self,
        pretrained: Any,
        *args: Any,
        engine: Engine = "auto",
        token_budget: int | str = "auto",
        tp_plan: str | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if engine not in ("auto", "trie", "padded"):
            raise ValueError(f"engine must be auto, trie or padded, not {engine}")
        if token_budget != "auto" and not (str(token_budget).isdecimal() and int(token_budget) > 0):
            raise ValueError(f"token_budget must be auto or a positive number, not {token_budget}")
        super().__init__(pretrained, *args, tp_plan=tp_plan, **kwargs)
        self.engine: Engine = engine
        self.token_budget: int | Literal["auto"] = "auto" if token_budget == "auto" else int(token_budget)
        self._tokenizers: dict[str, Tokenizer] = {}
        self.why_not_fast = self._why_not_fast(tp_plan)
        if self.why_not_fast is not None:
            _warn(f"log-likelihoods are computed by lm-eval's own code: {self.why_not_fast}")

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether it is what greedy decoding gives; see `HFLM`."""
        if not requests:
            return []
        if self.why_not_fast is not None or self.enable_thinking:
            inherited: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
            return inherited
        try:
            tokenizer = self._rust_tokenizer()
        except TokenizerError as error:
            problem: str | None = str(error)
        else:
            encoded, choices = self._encode(tokenizer, requests)
            problem = self._first_difference(requests, encoded, choices)
            if problem is None:
                names = [request.args for request in requests]
                return self._score(encoded, choices, names, disable_tqdm=disable_tqdm)
        _warn(f"prompts are tokenized by lm-eval's own code: {problem}")
        slowly: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return slowly

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each whole text, in disjoint windows of `max_length` tokens; see `HFLM`.

        The windows of all texts are one run, whatever `batch_size` is. They share nothing but their first token, so a
        trie would save nothing: unless `engine` says so, they are scored on padded rows, the longest first.
        """
        if self.why_not_fast is not None:
            inherited: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
            return inherited
        texts = [request.args[0] for request in requests]
        windows: list[TokenRequest] = []
        counts = []
        for text in tqdm(texts, desc="Tokenizing inputs", disable=disable_tqdm or self.rank != 0):
            cut = utils.get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            own = [(None, *utils.make_disjoint_window(window)) for window in cut]
            windows += own
            counts.append(len(own))
        engine: Engine = "padded" if self.engine == "auto" else self.engine
        scored = iter(self._score_tokens(windows, disable_tqdm=disable_tqdm, engine=engine))
        sums = [sum(found for found, _ in itertools.islice(scored, count)) for count in counts]
        for text, total in zip(texts, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return sums

    def _loglikelihood_tokens(
        self, requests: Sequence[TokenRequest], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """What `loglikelihood` returns, for requests that are tokenized already."""
        if self.why_not_fast is not None:
            inherited: list[tuple[float, bool]] = super()._loglikelihood_tokens(
                requests, disable_tqdm=disable_tqdm, override_bs=override_bs
            )
            return inherited
        return self._score_tokens(requests, disable_tqdm=disable_tqdm)

    def _score_tokens(
        self, requests: Sequence[TokenRequest], *, disable_tqdm: bool, engine: Engine | None = None
    ) -> list[tuple[float, bool]]:
        """Makes one run of requests that are tokenized already, those of one context together, and scores it."""
        if not requests:
            return []
        questions: dict[tuple[int, ...], list[int]] = {}
        for number, (_, context, _) in enumerate(requests):
            questions.setdefault(tuple(context), []).append(number)
        numbers = list(itertools.chain.from_iterable(questions.values()))
        encoded = Requests.from_tokens(
            [list(context) for context in questions],
            [[requests[number][2] for number in question] for question in questions.values()],
            self.max_length,
        )
        names = [name for name, _, _ in requests]
        return self._score(encoded, _places(numbers), names, disable_tqdm=disable_tqdm, engine=engine)

    def _score(
        self,
        requests: Requests,
        choices: NDArray[np.int64],
        names: Sequence[tuple[str, str] | None],
        *,
        disable_tqdm: bool,
        engine: Engine | None = None,
    ) -> list[tuple[float, bool]]:
        """Scores a run; lm-eval's cache gets each answer as soon as it is there.

        Args:
            requests: The run.
            choices: For each request of lm-eval, its choice in the run: int64 `[N]`.
            names: Under what the cache keeps each answer; None for not at all.
            disable_tqdm: Whether to show no progress bar.
            engine: In place of the model's.
        """
        partial = PartialScores.empty(requests.num_choices)
        request_of = np.empty_like(choices)
        request_of[choices] = np.arange(len(choices))
        reported = np.zeros(len(choices), dtype=np.bool_)
        bar = tqdm(total=len(names), disable=disable_tqdm or self.rank != 0, desc="Running loglikelihood requests")

        def report(*_: int) -> None:
            new = np.flatnonzero(partial.finished & ~reported)
            reported[new] = True
            bar.update(len(new))
            for choice in new.tolist():
                name = names[request_of[choice]]
                if name is not None:
                    answer = (float(partial.loglikelihood[choice]), bool(partial.is_greedy[choice]))
                    self.cache_hook.add_partial("loglikelihood", name, answer)

        with bar:
            scores = score(
                self._loaded(),
                requests,
                engine=engine or self._engine(),
                token_budget=self.token_budget,
                score_mode=self._score_mode(),
                progress=report,
                partial=partial,
            )
            report()
        return list(
            zip(scores.loglikelihood[choices].tolist(), scores.is_greedy[choices].tolist(), strict=True),
        )

    def _encode(self, tokenizer: Tokenizer, requests: Sequence[Instance]) -> tuple[Requests, NDArray[np.int64]]:
        """Tokenizes in Rust; with the tokens, the choice that each request became.

        Raises:
            TokenizerError: A context or continuation has no tokens, or a continuation more than the model reads; names
                the task and the number of the context in it.
        """
        tasks: dict[str | None, dict[str, list[int]]] = {}
        for number, request in enumerate(requests):
            tasks.setdefault(request.task_name, {}).setdefault(request.args[0], []).append(number)
        prompts = [
            Prompts.from_contexts(
                list(questions),
                [[requests[number].args[1] for number in question] for question in questions.values()],
                [0] * len(questions),
                source=task or "<requests>",
            )
            for task, questions in tasks.items()
        ]
        numbers = [number for questions in tasks.values() for question in questions.values() for number in question]
        return tokenizer.encode_requests(prompts, self.max_length), _places(numbers)

    def _rust_tokenizer(self) -> Tokenizer:
        """The tokenizer of lm-eval's `tok_encode` in Rust, loaded once for each state of it.

        Raises:
            TokenizerError: There is none, or the class has ways of its own to make tokens.
        """
        own = type(self)
        if own.tok_encode is not HFLM.tok_encode or own._encode_pair is not HFLM._encode_pair:
            raise TokenizerError(f"{own.__name__} has a `tok_encode` or `_encode_pair` of its own")
        kind = type(self.tokenizer)
        if not isinstance(self.tokenizer, PreTrainedTokenizerFast) or any(
            getattr(kind, name) is not getattr(base, name)
            for base, name in [
                (PreTrainedTokenizerFast, "_encode_plus"),
                (PreTrainedTokenizerBase, "encode"),
                (PreTrainedTokenizerBase, "decode"),
            ]
        ):
            raise TokenizerError(f"{kind.__name__} does not encode as the tokenizers of the library tokenizers do")
        if self.tokenizer.split_special_tokens:
            raise TokenizerError("the tokenizer splits special tokens (split_special_tokens)")
        state = f"{self.prefix_token_id} {self.add_bos_token} {self.tokenizer.backend_tokenizer.to_str()}"
        if state not in self._tokenizers:
            loaded = load_tokenizer(
                self.tokenizer, prefix_token_id=self.prefix_token_id, add_special_tokens=self.add_bos_token
            )
            self._tokenizers = {state: loaded}
        return self._tokenizers[state]

    def _first_difference(
        self, requests: Sequence[Instance], encoded: Requests, choices: NDArray[np.int64]
    ) -> str | None:
        """Tokenizes a sample of a run by lm-eval's own code too, and says where the tokens differ."""
        evenly = range(0, len(requests), max(1, len(requests) // _PROBES))
        unusual = (number for number, request in enumerate(requests) if not "".join(request.args).isascii())
        offsets = encoded.choice_offsets
        for number in {*evenly[:_PROBES], *itertools.islice(unusual, _PROBES)}:
            context, continuation = requests[number].args
            if context == "":
                continue  # does not come to `_encode_pair`; the prefix token stands for it
            expected = self._encode_pair(context, continuation)
            choice = choices[number]
            question = int(np.searchsorted(offsets, choice, side="right")) - 1
            found = (encoded.context(question).tolist(), encoded.continuation(int(choice)).tolist())
            if found != expected:
                return f"the Rust tokenizer makes other tokens of {(context[-40:], continuation)}"
        return None

    def _loaded(self) -> LoadedModel:
        return dataclasses.replace(
            wrap_model(self.model, self.tokenizer),
            device=torch.device(self.device),
            max_length=self.max_length,
            prefix_token_id=self.prefix_token_id,
        )

    def _engine(self) -> Engine:
        """A model that is spread over devices is scored on padded rows: a trie's segments lie on one."""
        devices = {parameter.device for parameter in self.model.parameters()}
        return "padded" if self.engine == "auto" and len(devices) > 1 else self.engine

    def _score_mode(self) -> ScoreMode:
        return "model" if self.softmax_dtype is None else "float32"

    def _why_not_fast(self, tp_plan: object) -> str | None:
        """Why `HFLM`'s own scoring must be used, or None."""
        own = type(self)
        if self.backend != "causal":
            return f"the model is {self.backend}, not causal"
        if tp_plan is not None:
            return "tensor parallelism needs the same batches in all processes"
        if self.mixed_precision_dtype is not None:
            return "mixed_precision_dtype casts within the forward pass; dtype loads the model in another type"
        if self.softmax_dtype not in (None, torch.float32):
            return f"softmax_dtype {self.softmax_dtype} is neither the model's nor float32"
        if own._model_call is not HFLM._model_call or own._select_cont_toks is not HFLM._select_cont_toks:
            return f"{own.__name__} has a `_model_call` or `_select_cont_toks` of its own"
        return None


def _places(numbers: Sequence[int]) -> NDArray[np.int64]:
    """Where each number stands in a list of all numbers from 0: its inverse permutation."""
    places = np.empty(len(numbers), dtype=np.int64)
    places[np.asarray(numbers, dtype=np.int64)] = np.arange(len(numbers))
    return places


def _warn(message: str) -> None:
    warnings.warn(message, WmdpFastWarning, stacklevel=3)
