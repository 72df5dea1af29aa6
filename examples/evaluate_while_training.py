"""A training loop of your own that asks the model questions as it goes; the same for transformers' `Trainer`.

The model, the text and the questions are the package's demo: made up, and quick on a CPU.
"""

from __future__ import annotations

import json
import tempfile

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

import wmdp_fast as wf
from wmdp_fast import demo
from wmdp_fast.integrations.training import QuestionSample


def main() -> None:
    """Runs the example."""
    tokenizer = AutoTokenizer.from_pretrained(demo.model_path())
    lines = demo.corpus_path("retain").read_text(encoding="utf-8").splitlines()[:8]
    rows = [tokenizer(json.loads(line)["text"], max_length=48, truncation=True).input_ids for line in lines]

    # A loop of your own: the questions are read and tokenized once, and asked whenever you like.
    model = AutoModelForCausalLM.from_pretrained(demo.model_path(), dtype=torch.float32).train()
    sample = QuestionSample(tokenizer, tasks=demo.questions_path("forget"), limit=8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step, row in enumerate(rows[:4]):
        if step % 2 == 0:
            print(f"step {step}: {sample(model)['glimmer_brewing_acc']:.2f}")
        tokens = torch.tensor([row])
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    # The Trainer: numbers go to its own loggers. TRL's trainers take the callback in the same way.
    model = AutoModelForCausalLM.from_pretrained(demo.model_path(), dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=2,
            per_device_train_batch_size=1,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
        )
        data = [{"input_ids": row, "labels": row} for row in rows]
        trainer = Trainer(model, arguments, train_dataset=data, processing_class=tokenizer)
        callback = wf.EvalCallback(trainer, tasks=demo.questions_path("forget"), limit=8, every=2)
        trainer.add_callback(callback)
        trainer.train()
    print([(entry["step"], round(entry["eval_glimmer_brewing_acc"], 2)) for entry in callback.history])


if __name__ == "__main__":
    main()
