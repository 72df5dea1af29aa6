"""ELM (Gandikota et al. 2024, arXiv:2410.02760), a document at a time, with targets and text made anew in each step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from tests.reference.methods.training import Rows


@dataclass
class Erasing:
    """The terms of a step's loss; each call is a step. Prefixes and what changes the subject are token ids."""

    expert: list[int]
    novice: list[int]
    writing_expert: list[int]
    writing_novice: list[int]
    change: list[int]
    eta: float
    top_k: int
    temperature: float
    gamma: float
    tokens: int
    seed: int
    bos: int
    end: int
    number: int = 0
    fluency_losses: list[float] = field(default_factory=list)

    def __call__(self, model: Any, reference: Any, forget: Rows, retain: Rows) -> tuple[torch.Tensor, ...]:
        erased, kept, fluent = [], [], []
        for document in documents_of(forget):
            found = logits(model, document)[:-1].log_softmax(dim=-1)
            erased.append(-(self.target(reference, document) * found).sum(dim=-1).mean())
            text = self.text(reference, document, self.number)
            said = logits(model, document + text)[len(document) - 1 : -1].log_softmax(dim=-1)
            fluent.append(-said.gather(1, torch.tensor(text)[:, None]).mean())
            self.number += 1
        for document in documents_of(retain):
            found = logits(model, document)[:-1].log_softmax(dim=-1)
            likeliest = logits(reference, document)[:-1].argmax(dim=-1)
            kept.append(-found.gather(1, likeliest[:, None]).mean())
        terms = tuple(torch.stack(one).mean() for one in (erased, kept, fluent))
        self.fluency_losses.append(float(terms[2].detach()))
        return terms

    def target(self, reference: Any, document: list[int]) -> torch.Tensor:
        """Over the whole vocabulary, [tokens - 1, V]."""
        first, rest = document[:1], document[1:]
        if first != [self.bos]:
            first, rest = [], document
        own, expert, novice = (
            (logits(reference, first + prefix + rest)[-len(document) : -1].double() / self.temperature).log_softmax(-1)
            for prefix in ([], self.expert, self.novice)
        )
        eta = torch.linspace(1, self.eta, len(document), dtype=torch.float64)[:-1, None]
        steered = own - eta * (expert - novice)
        least = steered.topk(self.top_k, dim=-1).values[:, -1:]
        return steered.masked_fill(steered < least, -torch.inf).softmax(dim=-1).float()

    def text(self, reference: Any, document: list[int], number: int) -> list[int]:
        """What changes the subject, and what is written then."""
        draws = np.random.default_rng(np.random.SeedSequence([self.seed, 0, number])).random(self.tokens)
        first = [self.bos] if document[0] == self.bos else []
        written: list[int] = []
        for draw in draws:
            own, expert, novice = (
                logits(reference, before + written)[-1].log_softmax(dim=-1)
                for before in (document + self.change, first + self.writing_expert, first + self.writing_novice)
            )
            shares = (own - self.gamma * (expert - novice)).double().softmax(dim=-1).cumsum(dim=-1)
            token = int((shares < draw * shares[-1]).sum())
            if token == self.end:
                break
            written.append(token)
        return self.change + written


def documents_of(rows: Rows) -> list[list[int]]:
    return [ids[mask.bool()].tolist() for ids, mask in zip(rows.ids, rows.mask, strict=True)]


def logits(model: Any, document: list[int]) -> torch.Tensor:
    """[tokens, V]."""
    found: torch.Tensor = model(input_ids=torch.tensor([document])).logits[0].float()
    return found
