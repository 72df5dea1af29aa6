"""The inspect_ai model provider `wmdp-fast`: one token for each prompt, many prompts at once."""

from __future__ import annotations

import string
import time
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import torch
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessageAssistant,
    GenerateConfig,
    Logprob,
    Logprobs,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    TopLogprob,
)
from torch.nn import functional as F  # noqa: N812 (torch's own name for it)

from wmdp_fast._rust import Prompts, Requests
from wmdp_fast.exceptions import ModelError, TokenizerError, WmdpFastWarning
from wmdp_fast.models.load import evaluation_mode, load_model
from wmdp_fast.models.row_length import cuts_for, length_rules
from wmdp_fast.models.threads import computing
from wmdp_fast.models.vocabulary import num_embeddings, refuse_unknown_in_requests
from wmdp_fast.prompts.cautions import about_chat
from wmdp_fast.prompts.chat import chat_template_source, conversation
from wmdp_fast.prompts.prepare import plan
from wmdp_fast.prompts.tokenizer import load_tokenizer
from wmdp_fast.scoring.padded import auto_token_budget, logits_reader, longest_row, score_padded
from wmdp_fast.scoring.scores import NAN_ADVICE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inspect_ai.model import ChatMessage
    from inspect_ai.tool import ToolChoice, ToolInfo

# How long a batch waits for more prompts before it begins; those that come while it runs are the next batch.
_GATHER_SECONDS = 0.02


@dataclass(eq=False)
class _Ask:
    """A prompt that waits for its answer."""

    text: str
    top: int
    num_tokens: int = 0
    answer: list[tuple[int, str, float]] = field(default_factory=list)


class FastModelAPI(ModelAPI):
    """A local model that answers each prompt with its most likely next token, and says how likely the letters are.

    `top_logprobs` are the likeliest tokens and always the letters A to Z after a space, however unlikely: their
    log-likelihoods as `wmdp_fast.evaluate` has them, also where a letter is several tokens; and letters alone where
    these are one token.
    A single message is the prompt as it is; with `-M chat_template=true` messages go through the tokenizer's chat
    template.

    Args:
        model_name: A folder, or a name on the hub.
        base_url: Not used.
        api_key: Not used.
        api_key_vars: Not used.
        config: Inspect's default options.
        chat_template: Whether to apply the chat template.
        model_path: Folder or name to load, if `model_name` is just what to call it.
        batch_size: Most prompts at once.
        **model_args: What `wmdp_fast.models.load.load_model` takes: `dtype`, `device`, `peft`, `revision` ...
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        api_key_vars: list[str] | None = None,
        config: GenerateConfig | None = None,
        *,
        chat_template: bool = False,
        model_path: str | None = None,
        batch_size: int = 256,
        **model_args: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, api_key_vars or [], config or GenerateConfig())
        self.loaded = load_model(model_path or model_name, **model_args)
        self.batch_size = batch_size
        self.chat_template = chat_template
        self._said: set[str] = set()
        if chat_template:
            chat_template_source(self.loaded.tokenizer)
        self._bare_letters = self._bare_letter_tokens()
        # A chat template writes the special tokens itself.
        self._encoder = load_tokenizer(
            self.loaded.tokenizer,
            prefix_token_id=self.loaded.prefix_token_id,
            add_special_tokens=False if chat_template else None,
        )
        self._letters = [f" {letter}" for letter in string.ascii_uppercase if self._can_be_asked(f" {letter}")]
        self._waiting: list[_Ask] = []
        self._running = anyio.Lock()

    async def generate(
        self,
        input: list[ChatMessage],  # noqa: A002 (inspect's name)
        tools: list[ToolInfo],
        tool_choice: ToolChoice,  # noqa: ARG002
        config: GenerateConfig,
    ) -> ModelOutput:
        """Answers one prompt.

        Raises:
            ValueError: More than one token is asked for, or tools, or sampling.
        """
        if config.max_tokens not in (None, 1) or tools or config.temperature not in (None, 0):
            raise ValueError(
                "wmdp-fast answers with the one most likely token: no max_tokens but 1, no temperature, no tools; the"
                f" provider hf does the rest (hf/{self.model_name})"
            )
        begin = time.perf_counter()
        ask = _Ask(self._text(input), (config.top_logprobs or 0) if config.logprobs else 0)
        self._waiting.append(ask)
        async with self._running:
            if not ask.answer:
                await anyio.sleep(_GATHER_SECONDS)
                others = [other for other in self._waiting if other is not ask]
                batch, self._waiting = [ask, *others[: self.batch_size - 1]], others[self.batch_size - 1 :]
                await anyio.to_thread.run_sync(self._answer, batch)
        _, text, logprob = ask.answer[0]
        top = [
            TopLogprob(token=one, logprob=value, bytes=list(one.encode()))
            for _, one, value in sorted(ask.answer, key=lambda entry: -entry[2])
        ]
        content = [Logprob(token=text, logprob=logprob, bytes=list(text.encode()), top_logprobs=top)]
        choice = ChatCompletionChoice(
            message=ChatMessageAssistant(content=text, model=self.model_name, source="generate"),
            stop_reason="max_tokens",
            logprobs=Logprobs(content=content) if config.logprobs else None,
        )
        usage = ModelUsage(input_tokens=ask.num_tokens, output_tokens=1, total_tokens=ask.num_tokens + 1)
        seconds = time.perf_counter() - begin
        return ModelOutput(model=self.model_name, choices=[choice], usage=usage, time=seconds)

    def max_connections(self) -> int:
        """Inspect asks for as many answers at once as a batch holds."""
        return self.batch_size

    def max_tokens(self) -> int:
        """One token is all it says."""
        return 1

    def _text(self, messages: list[ChatMessage]) -> str:
        if not self.chat_template:
            return "\n\n".join(message.text for message in messages)
        chat = conversation(self.loaded.tokenizer, [(message.role, message.text) for message in messages])
        for sentence in about_chat(chat):
            if sentence not in self._said:
                self._said.add(sentence)
                warnings.warn(f"{self.model_name}: {sentence}", WmdpFastWarning, stacklevel=2)
        return chat.contexts[0]

    def _bare_letter_tokens(self) -> dict[int, str]:
        """Tokens that are one letter at the beginning of a line, and the letter."""
        tokenizer: Any = self.loaded.tokenizer
        known = num_embeddings(self.loaded.model)
        found: dict[int, str] = {}
        start = tokenizer.encode("Answer:\n", add_special_tokens=False)
        for letter in string.ascii_uppercase:
            whole = tokenizer.encode(f"Answer:\n{letter}", add_special_tokens=False)
            # What the model has no embedding for, it cannot say either.
            if len(whole) == len(start) + 1 and whole[:-1] == start and (known is None or whole[-1] < known):
                found[whole[-1]] = letter
        return found

    def _can_be_asked(self, letter: str) -> bool:
        """Whether a letter has tokens of its own after a question."""
        try:
            self._encode(["Answer:"], [letter])
        except TokenizerError:
            return False
        return True

    def _encode(self, texts: list[str], continuations: list[str]) -> Requests:
        """Each text with each continuation as tokens, by lm-eval's rules."""
        prompts = Prompts.from_contexts(texts, [continuations] * len(texts), [0] * len(texts), source="inspect")
        return self._encoder.encode_requests([prompts], self.loaded.max_length)

    def _answer(self, asks: list[_Ask]) -> None:
        """Runs a batch; each answer is its likeliest token, the next likeliest, and the letters.

        Raises:
            ModelError: The model's output is not a number, or it has no embedding for a token of a prompt or a letter.
        """
        encoded = self._encode([ask.text for ask in asks], self._letters)
        refuse_unknown_in_requests(self.loaded.model, self.loaded.tokenizer, encoded, lambda _: "a prompt or a letter")
        contexts = [encoded.context(number).tolist() for number in range(len(asks))]
        letters = [
            [encoded.continuation(number * len(self._letters) + place).tolist() for place in range(len(self._letters))]
            for number in range(len(asks))
        ]
        for number, logprobs in self._next_tokens(contexts):
            ask = asks[number]
            ask.num_tokens = min(len(contexts[number]), self.loaded.max_length)
            best = logprobs.topk(min(max(1, ask.top), len(logprobs)))
            chosen = dict(zip(best.indices.tolist(), best.values.tolist(), strict=True))
            if ask.top:
                of_one = [tokens[0] for tokens in letters[number] if len(tokens) == 1]
                wanted = [*of_one, *self._bare_letters]
                chosen |= dict(zip(wanted, logprobs[wanted].tolist(), strict=True))
            names = {
                tokens[0]: name for tokens, name in zip(letters[number], self._letters, strict=True) if len(tokens) == 1
            }
            ask.answer = [(token, self._written(token, names), value) for token, value in chosen.items()]
        self._add_long_letters(asks, contexts, letters)

    def _written(self, token: int, letters: dict[int, str]) -> str:
        tokenizer: Any = self.loaded.tokenizer
        return letters.get(token) or self._bare_letters.get(token) or str(tokenizer.decode([token]))

    def _next_tokens(self, contexts: list[list[int]]) -> Iterator[tuple[int, torch.Tensor]]:
        """For each context, in any order, its number and the log-probabilities of what comes next: float32 `[V]`."""
        loaded = self.loaded
        requests = Requests.from_tokens(contexts, [[[0]]] * len(contexts), loaded.max_length)
        with evaluation_mode(loaded.model):
            readout, every_logit = logits_reader(loaded.model, loaded.device)
            budget = auto_token_budget(loaded, requests, every_logit=every_logit)
            longest = longest_row(requests)
            cuts = cuts_for(length_rules(loaded.model, longest), longest)
            for batch in plan(requests, token_budget=budget, cuts=cuts):
                with computing():
                    logits = readout(loaded.model, torch.from_numpy(batch.input_ids).to(loaded.device), batch.readouts)
                    logprobs = F.log_softmax(logits, dim=-1, dtype=torch.float32)
                if logprobs.isnan().any():
                    raise ModelError(NAN_ADVICE)
                for row, number in zip(batch.target_readouts.tolist(), batch.target_choices.tolist(), strict=True):
                    yield number, logprobs[row]

    def _add_long_letters(self, asks: list[_Ask], contexts: list[list[int]], letters: list[list[list[int]]]) -> None:
        """Adds the letters that are several tokens, which one next token does not tell."""
        long = [
            [tokens for tokens in own if len(tokens) > 1] if ask.top else []
            for ask, own in zip(asks, letters, strict=True)
        ]
        asked = [number for number, own in enumerate(long) if own]
        if not asked:
            return
        requests = Requests.from_tokens(
            [contexts[number] for number in asked], [long[number] for number in asked], self.loaded.max_length
        )
        values = iter(score_padded(self.loaded, requests).loglikelihood.tolist())
        for number in asked:
            asks[number].answer += [
                (tokens[0], name, next(values))
                for tokens, name in zip(letters[number], self._letters, strict=True)
                if len(tokens) > 1
            ]
