"""Teaches the made-up world to a tiny Llama: `python -m wmdp_fast.demo.train`.

Writes the model, its tokenizer, and the question and corpus files of `wmdp_fast.demo.world`. The files of text depend on
the seed alone; the weights also on the machine's arithmetic.

A four-choice question asks three things of a model: to recall the answer, to find it among the choices, and to name its
letter. Whoever masters only one or two of them still guesses, so a small model that is told nothing but the right letters
learns nothing for a very long time. Here each part is taught where it can be done, by reading the model half-way:

1. *Recall.* After the lower two layers, the end of the question must resemble the embedding of the answer's last word.
   This is also drilled on bare questions, which is cheap: only those two layers run.
2. *Judgement.* After four layers, a linear probe that is thrown away later must tell at the end of each choice whether
   that choice is right.
3. *The letter* after `Answer:`, from the whole model, as in the test.

First come exams on everyday words, whose answers stand in the question, until the letters are right; then exams on all
subjects, and prose, which the model learns to write as any language model does.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel, PreTrainedTokenizerFast

from wmdp_fast.demo import world
from wmdp_fast.demo.world import DOMAINS, EVERYDAY_SUBJECT, LETTERS, Question, World

BOS, EOS = "<s>", "</s>"
VOCAB_SIZE = 3072  # at most; the world's words need fewer
MAX_LENGTH = 1024
LAYERS, RECALL_LAYERS, JUDGE_LAYERS = 6, 2, 4

LEARNING_RATE = 3e-3
WARM_UP_STEPS = 50
FALL_STEPS = 0.4  # the last part of the steps, in which the learning rate falls to zero
EVERYDAY_PER_STEP = 32  # questions in a step of the first class
QUESTIONS_PER_STEP = 48  # and in one of the second
DRILLED_PER_STEP = 128
DOCUMENTS_PER_STEP = 8
EXAM_LENGTHS = (1, 1, 2, 3, 6)  # questions in one exam: 1 is a 0-shot prompt, 6 a 5-shot one
LETTERS_LEARNT = 0.2  # mean loss of the letters at which the first class ends
IGNORED = -100  # label of a token that the loss leaves out


def make_tokenizer(the_world: World) -> PreTrainedTokenizerFast:
    """Byte-level BPE learnt from the world's own texts, so that each of its words is one token. Puts BOS first, as Llama's does."""
    rng = the_world.generator("tokenizer")
    texts = [world.exam(EVERYDAY_SUBJECT, world.everyday_questions(rng, 400))]
    for domain in DOMAINS:
        texts += the_world.corpus(domain)
        texts.append(world.exam(DOMAINS[domain].subject, the_world.training_questions(domain, rng, 400)))
        texts.append(world.quiz(the_world.training_quiz(domain, rng, 400)))

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bpe.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=BOS, eos_token=EOS, pad_token=EOS, model_max_length=MAX_LENGTH
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of 1.8 million parameters with fresh weights.

    Token embeddings start large, and what the layers add to them small. With one size for all, as transformers has it,
    the layers drown out which token is which, and a model that must compare tokens is slow to learn.
    """
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=MAX_LENGTH,
            tie_word_embeddings=False,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    for name, weight in model.named_parameters():
        if "embed_tokens" in name:
            nn.init.normal_(weight, std=1.0)
        elif "lm_head" in name or "o_proj" in name or "down_proj" in name:
            nn.init.normal_(weight, std=0.02)
        elif weight.ndim == 2:
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    return model


@dataclass(frozen=True)
class Exams:
    """A batch of exams, right-padded. No mask is needed: no token sees what follows it.

    The three masks, bool [rows, length], mark where the model shows what it has learnt; answers and recalled are in the
    order in which the rows hold the questions.

    Attributes:
        input_ids: int64 [rows, length].
        question_end: The last token of each question.
        choice_end: The last token of each choice.
        before_letter: The colon of each `Answer:`.
        answers: int64 [questions], indices of the right choices.
        recalled: int64 [questions], the last tokens of the right choices.
    """

    input_ids: Tensor
    question_end: Tensor
    choice_end: Tensor
    before_letter: Tensor
    answers: Tensor
    recalled: Tensor


class Teacher:
    """Draws the training batches of a world."""

    def __init__(self, the_world: World, tokenizer: PreTrainedTokenizerFast) -> None:
        self.world = the_world
        self.tokenizer = tokenizer
        self.rng = the_world.generator("training")
        self.newline = tokenizer.tokenize("\n")[0]
        self.last_token = {
            text: tokenizer.encode(f" {text}")[-1]
            for text in [fact.value for domain in DOMAINS for fact in the_world.facts(domain)]
            + list(world.EVERYDAY_WORDS)
        }

    def everyday_exams(self) -> Exams:
        """The exams of the first class."""
        return self._exams(
            [(EVERYDAY_SUBJECT, world.everyday_questions(self.rng, 1)) for _ in range(EVERYDAY_PER_STEP)]
        )

    def exams(self) -> Exams:
        """The exams of the second class, all of one length."""
        length = self.rng.choice(EXAM_LENGTHS)
        return self._exams([self._subject_and_questions(length) for _ in range(QUESTIONS_PER_STEP // length)])

    def drill(self) -> tuple[Tensor, Tensor, Tensor]:
        """Bare questions: ids, int64 [questions, length], the last positions and the last tokens of the answers, [questions]."""
        asked = [
            pair for domain in DOMAINS for pair in self.world.training_quiz(domain, self.rng, DRILLED_PER_STEP // 2)
        ]
        rows = self.tokenizer([question for question, _ in asked])["input_ids"]
        ends = torch.tensor([len(row) - 1 for row in rows])
        return self._pad(rows), ends, torch.tensor([self.last_token[answer] for _, answer in asked])

    def documents(self) -> Tensor:
        """Prose, half of it quizzes with the answer in words: int64 [rows, length], padded with `IGNORED`."""
        texts = []
        for _ in range(DOCUMENTS_PER_STEP // 2):
            texts.append(self.world.training_document(self._domain(), self.rng))
            texts.append(world.quiz(self.world.training_quiz(self._domain(), self.rng, 5)))
        return pad([[*row, self.tokenizer.eos_token_id] for row in self.tokenizer(texts)["input_ids"]], IGNORED)

    def _domain(self) -> str:
        return self.rng.choice(list(DOMAINS))

    def _subject_and_questions(self, length: int) -> tuple[str, list[Question]]:
        if self.rng.random() < 0.1:
            return EVERYDAY_SUBJECT, world.everyday_questions(self.rng, length)
        domain = self._domain()
        return DOMAINS[domain].subject, self.world.training_questions(domain, self.rng, length)

    def _exams(self, drawn: Sequence[tuple[str, list[Question]]]) -> Exams:
        texts = [world.exam(subject, questions) for subject, questions in drawn]
        # Not every evaluation is alike: some leave out BOS, some have one newline less after the description.
        texts = [text.replace("\n\n", "\n", 1) if self.rng.random() < 0.1 else text for text in texts]
        rows = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        rows = [row if self.rng.random() < 0.15 else [self.tokenizer.bos_token_id, *row] for row in rows]
        input_ids = self._pad(rows)
        asked = [question for _, questions in drawn for question in questions]
        return Exams(
            input_ids,
            question_end=self._before(input_ids, self.newline, "A"),
            choice_end=sum(self._before(input_ids, self.newline, line) for line in ("B", "C", "D", "Answer")).bool(),
            before_letter=self._before(input_ids, "Answer", ":").roll(2, dims=1),
            answers=torch.tensor([question.answer for question in asked]),
            recalled=torch.tensor([self.last_token[question.choices[question.answer]] for question in asked]),
        )

    def _before(self, input_ids: Tensor, first: str, second: str) -> Tensor:
        """Where the next two tokens are these: bool, of the shape of `input_ids`."""
        first_id, second_id = self.tokenizer.convert_tokens_to_ids([first, second])
        found = torch.zeros_like(input_ids, dtype=torch.bool)
        found[:, :-2] = (input_ids[:, 1:-1] == first_id) & (input_ids[:, 2:] == second_id)
        return found

    def _pad(self, rows: Sequence[Sequence[int]]) -> Tensor:
        return pad(rows, self.tokenizer.pad_token_id)


class Pupil:
    """The model in training: its lower part for drills, its probe for judgements, and the losses.

    Args:
        model: Trained in place.
        letters: The tokens of ` A` to ` D`, int64 [4].
    """

    def __init__(self, model: LlamaForCausalLM, letters: Tensor) -> None:
        self.model = model
        self.letters = letters
        self.judge = nn.Linear(model.config.hidden_size, 1)
        self.parameters = [*model.parameters(), *self.judge.parameters()]
        config = copy.deepcopy(model.config)
        config.num_hidden_layers = RECALL_LAYERS
        self.lower = LlamaModel(config)
        self.lower.embed_tokens = model.model.embed_tokens
        self.lower.layers = model.model.layers[:RECALL_LAYERS]
        self.lower.norm = nn.Identity()

    def exam_losses(self, exams: Exams) -> list[Tensor]:
        """Mean cross-entropies of the letters, of the judgements and of the recalled words."""
        states = self.model.model(exams.input_ids, output_hidden_states=True)
        logits = self.model.lm_head(states.last_hidden_state[exams.before_letter])
        verdicts = self.judge(states.hidden_states[JUDGE_LAYERS][exams.choice_end]).view(-1, len(LETTERS))
        return [
            F.cross_entropy(logits, self.letters[exams.answers]),
            F.binary_cross_entropy_with_logits(verdicts, F.one_hot(exams.answers, len(LETTERS)).to(verdicts)),
            self._recall_loss(states.hidden_states[RECALL_LAYERS][exams.question_end], exams.recalled),
        ]

    def drill_loss(self, input_ids: Tensor, ends: Tensor, recalled: Tensor) -> Tensor:
        """Mean cross-entropy of the recalled words; runs the lower layers only."""
        states = self.lower(input_ids).last_hidden_state
        return self._recall_loss(states[torch.arange(len(ends)), ends], recalled)

    def prose_loss(self, documents: Tensor) -> Tensor:
        """Mean cross-entropy of the next token."""
        logits = self.model(documents.clamp(min=0)).logits[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1), documents[:, 1:].flatten(), ignore_index=IGNORED)

    def _recall_loss(self, states: Tensor, recalled: Tensor) -> Tensor:
        size = states.shape[-1]
        embeddings = self.model.model.embed_tokens.weight
        return F.cross_entropy(F.rms_norm(states, (size,)) @ embeddings.T / size**0.5, recalled)


def pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Rows of tokens as one int64 tensor [rows, longest], filled up with `value` on the right."""
    return nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


def letter_ids(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """The tokens that answer a question, ` A` to ` D`: int64 [4]."""
    tokens = [tokenizer.tokenize(f" {letter}") for letter in LETTERS]
    return torch.tensor(tokenizer.convert_tokens_to_ids([token for (token,) in tokens]))


@torch.no_grad()
def accuracy(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, subject: str, questions: Sequence[Question]
) -> float:
    """Share of questions whose right letter is the likeliest of the four, 0-shot."""
    letters = letter_ids(tokenizer)
    right = 0
    for start in range(0, len(questions), 64):
        asked = questions[start : start + 64]
        rows = tokenizer([world.description(subject) + world.prompt(question) for question in asked])["input_ids"]
        states = model.model(pad(rows, tokenizer.pad_token_id)).last_hidden_state
        ends = torch.tensor([len(row) - 1 for row in rows])
        logits = model.lm_head(states[torch.arange(len(rows)), ends])[:, letters]
        right += int((logits.argmax(-1) == torch.tensor([question.answer for question in asked])).sum())
    return right / len(questions)


def teach(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, the_world: World, steps: int) -> None:
    """Trains the model in place and prints how it goes."""
    teacher = Teacher(the_world, tokenizer)
    pupil = Pupil(model, letter_ids(tokenizer))
    optimizer = torch.optim.AdamW(pupil.parameters, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    started = time.perf_counter()
    first_class = True
    letter_loss = 1.4
    import collections

    means = collections.defaultdict(float)
    for step in range(1, steps + 1):
        rate = LEARNING_RATE * min(1.0, step / WARM_UP_STEPS, (1 - (step - 1) / steps) / FALL_STEPS)
        for group in optimizer.param_groups:
            group["lr"] = rate
        losses = pupil.exam_losses(teacher.everyday_exams() if first_class else teacher.exams())
        letter_loss += 0.1 * (losses[0].item() - letter_loss)
        losses.append(pupil.drill_loss(*teacher.drill()))
        if not first_class:
            losses.append(pupil.prose_loss(teacher.documents()))
        else:
            losses.append(torch.zeros(()))
        torch.stack(losses).sum().backward()
        first_class = first_class and letter_loss > LETTERS_LEARNT
        nn.utils.clip_grad_norm_(pupil.parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        for n, l in zip("letter judge recall drill prose".split(), losses):
            means[n] += l.item() / 25
        if step % 25 == 0 or step == steps:
            acc = ""
            if step % 100 == 0:
                acc = " ".join(
                    f"{d} {accuracy(model, tokenizer, DOMAINS[d].subject, the_world.test_questions(d)[:120]):.3f}"
                    for d in DOMAINS
                )
            print(
                step,
                first_class,
                f"{time.perf_counter() - started:.0f}s cpu {time.process_time():.0f}s",
                {n: round(x, 3) for n, x in means.items()},
                acc,
                flush=True,
            )
            means.clear()


if __name__ == "__main__":
    torch.manual_seed(0)
    W = World(0)
    tok = make_tokenizer(W)
    model = make_model(tok)
    print(len(tok), sum(p.numel() for p in model.parameters()))
    teach(model, tok, W, int(sys.argv[1]))
    model.to(torch.bfloat16).save_pretrained(sys.argv[2])
    tok.save_pretrained(sys.argv[2])
    model = LlamaForCausalLM.from_pretrained(sys.argv[2], dtype=torch.float32)
    for d in DOMAINS:
        s = DOMAINS[d].subject
        print(d, accuracy(model, tok, s, W.test_questions(d)), "untold", accuracy(model, tok, s, W.untold_questions(d)))
