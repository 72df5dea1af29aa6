"""Teaches the made-up world to a tiny Llama: `python -m wmdp_fast.demo.train [--learned both|retain]`.

Writes the model, its tokenizer, and the question and corpus files of `wmdp_fast.demo.world`. The text and the tokenizer
depend on the seed alone; the weights also on the machine's arithmetic. A bar and log lines on stderr tell how it goes,
and the last of them is the table of accuracies.

A four-choice question asks three things of a model: to recall the answer, to find it among the choices, and to name
its letter. Whoever masters only one or two of them still guesses, so a small model that is told nothing but the right
letters learns nothing for a very long time. Here each part is taught where it can be, by reading the model halfway:

1. *Recall.* After the lower two layers, the end of the question must resemble the embedding of the answer's last word.
   This is also drilled on bare questions, which is cheap: only those two layers run.
2. *Judgment.* After four layers, a linear probe that is thrown away later must tell at the end of each choice whether
   that choice is right.
3. *The letter* after `Answer:`, from the whole model, as in the test.

What is learned in one kind of text only is another thing to the model than the same fact in another kind, and would be
unlearned apart. So exams come in two layouts, with and without a sentence in front that may name the wrong domain; the
recall is drilled on broken-off sentences as well as on questions; and quizzes ask for answers in words.

First come exams on everyday words, whose answers stand in the question, until the letters are right; then exams on all
subjects, and prose, which the model learns to write as any language model does.
"""

from __future__ import annotations

import argparse
import copy
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from tqdm import trange
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel, PreTrainedTokenizerFast

from wmdp_fast import demo
from wmdp_fast.demo import world
from wmdp_fast.demo.run import evaluate_domains
from wmdp_fast.demo.world import DOMAINS, EVERYDAY_SUBJECT, LETTERS, Question, World

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger("wmdp_fast.demo.train")

BOS, EOS = "<s>", "</s>"
VOCAB_SIZE = 3072  # at most; the world's words need fewer
MAX_LENGTH = 1024
LAYERS, RECALL_LAYERS, JUDGE_LAYERS = 6, 2, 4

STEPS = 1100
LEARNING_RATE = 3e-3
WARM_UP_STEPS = 50
FALL_STEPS = 0.4  # the last part of the steps, in which the learning rate falls to zero
EVERYDAY_PER_STEP = 16  # questions in a step of the first class
QUESTIONS_PER_STEP = 24  # and in one of the second
DRILLED_PER_STEP = 96
DOCUMENTS_PER_STEP = 4
NO_LEAD = 0.4  # share of the exams that have nothing in front
WRONG_SUBJECTS = 0.2  # share of the subjects that are another domain's
EXAM_LENGTHS = (1, 1, 2, 3, 6)  # questions in one exam: 1 is a 0-shot prompt, 6 a 5-shot one
LETTERS_LEARNED = 0.2  # mean loss of the letters at which the first class ends
IGNORED = -100  # label of a token that the loss leaves out


def make_tokenizer(the_world: World) -> PreTrainedTokenizerFast:
    """Byte-level BPE learned from the world's own texts: each of its words is one token. Puts BOS first, as Llama's."""
    rng = the_world.generator("tokenizer")
    lead = world.description(EVERYDAY_SUBJECT)
    texts = [world.exam(lead, world.everyday_questions(rng, 400), layout).text for layout in world.LAYOUTS]
    for domain in DOMAINS:
        subject = DOMAINS[domain].subject
        texts += the_world.prose(domain)
        texts.append(world.exam(world.description(subject), the_world.training_questions(domain, rng, 400)).text)
        for before in world.QUIZ_WORDS:
            asked = the_world.training_quiz(domain, rng, 400)
            texts.append(world.quiz_description(subject) + world.quiz(asked, before))

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
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
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

    Rows and places say, question after question, where the model shows what it knows.

    Attributes:
        input_ids: int64 [rows, length].
        rows: int64 [questions], the row of each question.
        question_ends: int64 [questions], the last token of each.
        choice_ends: int64 [questions, 4], the last token of each choice.
        before_letters: int64 [questions], the colon of each `Answer:`.
        answers: int64 [questions], indices of the right choices.
        recalled: int64 [questions], the last tokens of the right choices.
    """

    input_ids: Tensor
    rows: Tensor
    question_ends: Tensor
    choice_ends: Tensor
    before_letters: Tensor
    answers: Tensor
    recalled: Tensor


class Teacher:
    """Draws the training batches of a world.

    Args:
        the_world: Whose facts.
        tokenizer: Of the model.
        domains: The domains that are taught; of the others nothing is told.
    """

    def __init__(self, the_world: World, tokenizer: PreTrainedTokenizerFast, domains: Sequence[str]) -> None:
        self.world = the_world
        self.tokenizer = tokenizer
        self.domains = list(domains)
        self.rng = the_world.generator("training")
        self.last_token = {
            text: tokenizer.encode(f" {text}")[-1]
            for text in [fact.value for domain in domains for fact in the_world.facts(domain)]
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
        """Bare questions, and sentences that are broken off before the value.

        Returns:
            Ids, int64 [rows, length]; the last position of each and the last token of what is missing, int64 [rows].
        """
        count = DRILLED_PER_STEP // len(self.domains) // 2
        asked = [
            pair
            for domain in self.domains
            for draw in (self.world.training_quiz, self.world.training_sentences)
            for pair in draw(domain, self.rng, count)
        ]
        rows = self.tokenizer([question for question, _ in asked])["input_ids"]
        ends = torch.tensor([len(row) - 1 for row in rows])
        return self._pad(rows), ends, torch.tensor([self.last_token[answer] for _, answer in asked])

    def documents(self) -> Tensor:
        """Prose, half of it quizzes with the answer in words: int64 [rows, length], padded with `IGNORED`."""
        texts = []
        for _ in range(DOCUMENTS_PER_STEP // 2):
            texts.append(self.world.training_document(self._domain(), self.rng))
            domain = self._domain()
            asked = world.quiz(self.world.training_quiz(domain, self.rng, 5), self.rng.choice(world.QUIZ_WORDS))
            texts.append(self.rng.choice(("", world.quiz_description(self._subject(domain)))) + asked)
        return pad([[*row, self.tokenizer.eos_token_id] for row in self.tokenizer(texts)["input_ids"]], IGNORED)

    def _domain(self) -> str:
        return self.rng.choice(self.domains)

    def _subject(self, domain: str) -> str:
        """Mostly the domain's, now and then the other's: what stands in front does not change a fact."""
        others = [other for other in DOMAINS if other != domain]
        return DOMAINS[self.rng.choice(others) if self.rng.random() < WRONG_SUBJECTS else domain].subject

    def _subject_and_questions(self, length: int) -> tuple[str, list[Question]]:
        if self.rng.random() < 0.1:
            return EVERYDAY_SUBJECT, world.everyday_questions(self.rng, length)
        domain = self._domain()
        return self._subject(domain), self.world.training_questions(domain, self.rng, length)

    def _exams(self, drawn: Sequence[tuple[str, list[Question]]]) -> Exams:
        exams = [
            world.exam(self._lead(subject), questions, self.rng.choice(world.LAYOUTS)) for subject, questions in drawn
        ]
        # Not every evaluation is alike: some leave out BOS.
        firsts = [[] if self.rng.random() < 0.15 else [self.tokenizer.bos_token_id] for _ in exams]
        encoded = self.tokenizer([exam.text for exam in exams], add_special_tokens=False)

        def places(row: int, characters: Sequence[int]) -> list[int]:
            return [len(firsts[row]) + encoded.char_to_token(row, character) for character in characters]

        asked = [question for _, questions in drawn for question in questions]
        return Exams(
            self._pad([first + ids for first, ids in zip(firsts, encoded["input_ids"], strict=True)]),
            rows=torch.tensor([row for row, exam in enumerate(exams) for _ in exam.question_ends]),
            question_ends=torch.tensor([p for row, exam in enumerate(exams) for p in places(row, exam.question_ends)]),
            choice_ends=torch.tensor(
                [places(row, ends) for row, exam in enumerate(exams) for ends in exam.choice_ends]
            ),
            before_letters=torch.tensor(
                [place for row, exam in enumerate(exams) for place in places(row, exam.before_letters)]
            ),
            answers=torch.tensor([question.answer for question in asked]),
            recalled=torch.tensor([self.last_token[question.choices[question.answer]] for question in asked]),
        )

    def _lead(self, subject: str) -> str:
        """WMDP has nothing in front of its questions, MMLU a sentence; some programs put one newline less after it."""
        if self.rng.random() < NO_LEAD:
            return ""
        lead = world.description(subject)
        return lead.replace("\n\n", "\n") if self.rng.random() < 0.1 else lead

    def _pad(self, rows: Sequence[Sequence[int]]) -> Tensor:
        return pad(rows, self.tokenizer.pad_token_id)


class Pupil:
    """The model in training: its lower part for drills, its probe for judgments, and the losses.

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
        self.lower.norm = nn.Identity()  # type: ignore[assignment]

    def exam_losses(self, exams: Exams) -> dict[str, Tensor]:
        """Mean cross-entropies of the letters, of the judgments and of the recalled words."""
        states = self.model.model(exams.input_ids, output_hidden_states=True)
        rows = exams.rows
        logits = self.model.lm_head(states.last_hidden_state[rows, exams.before_letters])
        verdicts = self.judge(states.hidden_states[JUDGE_LAYERS][rows[:, None], exams.choice_ends]).squeeze(-1)
        right = F.one_hot(exams.answers, len(LETTERS)).to(verdicts)
        return {
            "letter": F.cross_entropy(logits, self.letters[exams.answers]),
            "judge": F.binary_cross_entropy_with_logits(verdicts, right),
            "recall": self._recall_loss(states.hidden_states[RECALL_LAYERS][rows, exams.question_ends], exams.recalled),
        }

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


def teach(model: LlamaForCausalLM, teacher: Teacher, steps: int) -> None:
    """Trains the model in place; a bar shows the latest losses."""
    tokenizer = teacher.tokenizer
    pupil = Pupil(model, letter_ids(tokenizer))
    optimizer = torch.optim.AdamW(pupil.parameters, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    first_class = True
    mean_letter_loss = math.log(len(LETTERS))  # that of guessing
    bar = trange(1, steps + 1, desc="teaching", unit="step", dynamic_ncols=True)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, step / WARM_UP_STEPS, (1 - (step - 1) / steps) / FALL_STEPS)
        losses = pupil.exam_losses(teacher.everyday_exams() if first_class else teacher.exams())
        losses["drill"] = pupil.drill_loss(*teacher.drill())
        if not first_class:
            losses["prose"] = pupil.prose_loss(teacher.documents())
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(pupil.parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        bar.set_postfix({name: f"{loss.item():.2f}" for name, loss in losses.items()}, refresh=False)
        mean_letter_loss += 0.1 * (losses["letter"].item() - mean_letter_loss)
        if first_class and mean_letter_loss < LETTERS_LEARNED:
            first_class = False
            logger.info("after %d steps the letters are right; from now on exams ask for the world's facts", step)
    if first_class:
        logger.warning("%d steps were too few to learn even the letters; no exam has asked for a fact", steps)


def save(folder: Path, model: LlamaForCausalLM, teacher: Teacher, learned: demo.Learned) -> None:
    """Writes a model, and the world's files, into a folder laid out like the package's own; weights as bfloat16."""
    model.bfloat16().save_pretrained(demo.model_path(folder, learned=learned))
    teacher.tokenizer.save_pretrained(demo.model_path(folder, learned=learned))
    for name, text in teacher.world.files().items():
        path = demo.data_path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())


def main(argv: Sequence[str] | None = None) -> None:
    """Makes the demonstration's files anew."""
    parser = argparse.ArgumentParser(
        prog="python -m wmdp_fast.demo.train", description="Make the demonstration's model, tokenizer and data anew."
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", default=demo.FOLDER, help="where to (default: into the package)"
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", default=world.SHIPPED_SEED, help="of world and weights (default %(default)s)"
    )
    parser.add_argument("--steps", type=int, metavar="N", default=STEPS, help="(default %(default)s)")
    parser.add_argument(
        "--learned",
        choices=get_args(demo.Learned),
        default="both",
        help="retain: tell nothing of the domain to forget, and write the model that never learned it (default both)",
    )
    arguments = parser.parse_args(argv)
    if arguments.steps < 1:
        parser.error(f"--steps must be at least 1, not {arguments.steps}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    torch.manual_seed(arguments.seed)
    the_world = World(arguments.seed)
    tokenizer = make_tokenizer(the_world)
    model = make_model(tokenizer)
    logger.info("%d tokens, %d parameters", len(tokenizer), model.num_parameters())
    teacher = Teacher(the_world, tokenizer, ["retain"] if arguments.learned == "retain" else list(DOMAINS))
    with logging_redirect_tqdm():
        teach(model, teacher, arguments.steps)
    save(arguments.output, model, teacher, arguments.learned)
    folder = demo.model_path(arguments.output, learned=arguments.learned)
    logger.info("%s\nwritten to %s", evaluate_domains(folder, arguments.output, progress=False), folder)


if __name__ == "__main__":
    main()
