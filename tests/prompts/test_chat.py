"""Chat-template prompts equal lm-eval's, string for string."""

from __future__ import annotations

import json

import pytest

from wmdp_fast.exceptions import TemplateError
from wmdp_fast.prompts.cautions import about_chat
from wmdp_fast.prompts.chat import chat_contexts, chat_template_source, system_text

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As Gemma's: no system message, turns must alternate, content is trimmed.
NO_SYSTEM = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + m['role'] + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# As Llama 2's: the system message goes into the first user turn, and everything is stripped.
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set rest = messages[1:] %}"
    "{% else %}{% set system = false %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if loop.index0 == 0 and system %}"
    "{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + m['content'] %}"
    "{% else %}{% set content = m['content'] %}{% endif %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
TEMPLATES = {"chatml": CHATML, "no system": NO_SYSTEM, "llama 2": LLAMA_2}

DESCRIPTION = "The following are multiple choice questions (with answers) about made-up planets.\n\n"
QUESTIONS = [
    {"question": "  Which moon is square?\n", "choices": ["Ob", "Ib ", "Ab", "Ub"], "answer": 2},
    {"question": "How many rings has {Zog}?", "choices": ["1", "two", " 3", "<|im_end|>"], "answer": 0},
    {"question": "What's\n\non Mimp — \u00e9tang?", "choices": ["sand", "tea", "", "fog"], "answer": 3},
]
EXAMPLES = [
    {"question": "Is Pell wet? ", "choices": ["yes", "no", "both", "ask"], "answer": 1},
    {"question": "Who found Pell?", "choices": ["Ann", "Bo", "Cy", "Di"], "answer": 0},
]


@pytest.fixture(scope="module")
def tokenizer():
    """A real tokenizer of transformers, with five words; chat templates are put on it by the tests."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models

    words = {"<s>": 0, "</s>": 1, "<unk>": 2, "A": 3, "B": 4}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )


@pytest.fixture
def with_template(tokenizer):
    def give(template):
        tokenizer.chat_template = template
        return tokenizer

    yield give
    tokenizer.chat_template = None


def letters_prompt(doc) -> str:
    lines = [
        doc["question"].strip(),
        *(f"{letter}. {text}" for letter, text in zip("ABCD", doc["choices"], strict=True)),
    ]
    return "\n".join([*lines, "Answer:"])


def question_prompt(doc) -> str:
    return f"Question: {doc['question'].strip()}\nAnswer:"


# For each way to ask: the prompt, the continuations, and lm-eval's doc_to_text and doc_to_choice.
STYLES = {
    "letters": (
        letters_prompt,
        lambda _: list("ABCD"),
        "{{question.strip()}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\nD. {{choices[3]}}\nAnswer:",
        ["A", "B", "C", "D"],
    ),
    "texts": (
        question_prompt,
        lambda doc: doc["choices"],
        "Question: {{question.strip()}}\nAnswer:",
        "{{choices}}",
    ),
}


@pytest.fixture(scope="module")
def lm_eval_tasks(tmp_path_factory):
    """lm-eval's own tasks over the questions above, one for each style."""
    pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    folder = tmp_path_factory.mktemp("tasks")
    for name, rows in (("test", QUESTIONS), ("dev", EXAMPLES)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for style, (_, _, doc_to_text, doc_to_choice) in STYLES.items():
        (folder / f"{style}.yaml").write_text(
            f"""
task: {style}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder}/test.jsonl
    dev: {folder}/dev.jsonl
  cache_dir: {folder}/cache
test_split: test
fewshot_split: dev
fewshot_config:
  sampler: first_n
output_type: multiple_choice
description: {json.dumps(DESCRIPTION)}
doc_to_text: {json.dumps(doc_to_text)}
doc_to_choice: {json.dumps(doc_to_choice)}
doc_to_target: answer
"""
        )
    return TaskManager(include_path=str(folder), include_defaults=False).load(list(STYLES))["tasks"]


def lm_eval_requests(task, tokenizer, num_fewshot, **options) -> list[tuple[str, str]]:
    """The (context, continuation) pairs lm-eval would send to a Hugging Face model."""
    from lm_eval.models.huggingface import HFLM

    model = HFLM.__new__(HFLM)  # the real apply_chat_template, without a model to load
    model.tokenizer, model.chat_template_args = tokenizer, {}
    task.set_config("num_fewshot", num_fewshot)
    task.build_all_requests(apply_chat_template=True, chat_template=model.apply_chat_template, **options)
    return [instance.args for instance in task.instances]


@pytest.mark.parametrize("system_instruction", [None, "You know planets.", "You know planets.\n"])
@pytest.mark.parametrize("fewshot_as_multiturn", [True, False])
@pytest.mark.parametrize("num_fewshot", [0, 2])
@pytest.mark.parametrize("style", list(STYLES))
@pytest.mark.parametrize("template", list(TEMPLATES))
def test_contexts_and_continuations_are_lm_evals(
    lm_eval_tasks, with_template, template, style, num_fewshot, fewshot_as_multiturn, system_instruction
):
    tokenizer = with_template(TEMPLATES[template])
    expected = lm_eval_requests(
        lm_eval_tasks[style],
        tokenizer,
        num_fewshot,
        system_instruction=system_instruction,
        fewshot_as_multiturn=fewshot_as_multiturn,
    )
    prompt, choices, _, _ = STYLES[style]
    ours = chat_contexts(
        tokenizer,
        [prompt(doc) for doc in QUESTIONS],
        description=DESCRIPTION,
        system_instruction=system_instruction,
        fewshot_turns=[(prompt(doc), choices(doc)[doc["answer"]]) for doc in EXAMPLES[:num_fewshot]],
        fewshot_as_multiturn=fewshot_as_multiturn,
    )
    assert ours.without_system == (template == "no system")
    assert [
        (context, ours.delimiter + choice)
        for context, doc in zip(ours.contexts, QUESTIONS, strict=True)
        for choice in choices(doc)
    ] == expected


@pytest.mark.parametrize("system_instruction", [None, "", "Be brief.", "Be brief. ", "Be\n"])
@pytest.mark.parametrize("description", ["", "About planets.\n\n", "\nAbout planets."])
def test_the_system_text_is_lm_evals(system_instruction, description):
    utils = pytest.importorskip("lm_eval.api.utils")
    expected = utils.maybe_delimit(system_instruction, description, "\n\n")
    assert system_text(system_instruction, description) == expected


def test_without_description_or_instruction_there_is_no_system_message(with_template):
    ours = chat_contexts(with_template(NO_SYSTEM), ["Well?"])
    assert ours.contexts == ["<s><start_of_turn>user\nWell?<end_of_turn>\n<start_of_turn>model\n"]
    assert not ours.without_system


def test_a_named_template_is_the_one_used(with_template):
    tokenizer = with_template({"default": CHATML, "short": "{{ messages[-1]['content'] }}>"})
    assert chat_template_source(tokenizer) == CHATML
    assert chat_contexts(tokenizer, ["Well?"]).contexts == [
        "<|im_start|>user\nWell?<|im_end|>\n<|im_start|>assistant\n"
    ]
    assert chat_contexts(tokenizer, ["Well?"], chat_template="short").contexts == ["Well?>"]


@pytest.mark.parametrize(
    ("template", "name", "problem"),
    [
        (None, True, "has no chat template"),
        (CHATML, "rag", "one chat template without a name, and none called 'rag'"),
        ({"default": CHATML, "tool_use": CHATML}, "rag", "called 'rag'; its templates: default, tool_use"),
        ({"rag": CHATML}, True, "called 'default'; its templates: rag"),
    ],
)
def test_a_template_that_is_not_there_is_an_error(with_template, template, name, problem):
    with pytest.raises(TemplateError, match=problem):
        chat_contexts(with_template(template), ["Well?"], chat_template=name)


def test_a_template_that_fails_even_without_system_message_is_an_error_with_its_words(with_template):
    tokenizer = with_template("{{ raise_exception('only for tea') }}")
    with pytest.raises(TemplateError, match="chat template fails: only for tea"):
        chat_contexts(tokenizer, ["Well?"], description=DESCRIPTION)


# As SmolVLM's: each content is a list of parts, and a text has none that it could print.
IN_PARTS = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def test_a_template_of_parts_gets_parts_and_keeps_the_question(with_template):
    tokenizer = with_template(IN_PARTS)
    asked = chat_contexts(tokenizer, ["Well?", "So?"], description="Say.", fewshot_turns=[("Is it?", "yes")])
    assert asked.in_parts
    assert asked.left_out == ()
    assert asked.contexts[1] == (
        "<|im_start|>System: Say.<end_of_utterance>\nUser: Is it?<end_of_utterance>\nAssistant: yes<end_of_utterance>\n"
        "User: So?<end_of_utterance>\nAssistant:"
    )
    # transformers' own rendering of the same parts.
    parts = [
        {"role": role, "content": [{"type": "text", "text": text}]}
        for role, text in (("system", "Say."), ("user", "Is it?"), ("assistant", "yes"), ("user", "So?"))
    ]
    assert asked.contexts[1] == tokenizer.apply_chat_template(parts, tokenize=False, add_generation_prompt=True)
    assert not chat_contexts(with_template(CHATML), ["Well?"]).in_parts


@pytest.mark.parametrize(
    "template",
    ["{{ messages[0]['role'] }}", "{{ messages[-1]['content'] | upper }}", "{{ messages[-1]['content'][:3] }}"],
)
def test_a_template_that_leaves_the_question_out_is_refused(with_template, template):
    with pytest.raises(TemplateError, match="leaves out the text of question 1, or changes it"):
        chat_contexts(with_template(template), ["Which moon is it?"])


def test_what_a_template_leaves_out_beside_the_question_is_told(with_template):
    tokenizer = with_template("{{ messages[-1]['content'] }}")
    asked = chat_contexts(tokenizer, ["Well?"], description="Say.", fewshot_turns=[("Is it?", "yes")])
    assert asked.left_out == ("description", "examples")


@pytest.mark.parametrize(
    ("template", "kind"),
    [
        ("{{ 1 + messages[0]['content'] }}", "TypeError"),
        ("{{ messages[0]['content'] }}{{ 1 / 0 }}", "ZeroDivisionError"),
    ],
)
def test_whatever_a_template_raises_is_a_template_error(with_template, template, kind):
    with pytest.raises(TemplateError, match=f"chat template fails: {kind}: "):
        chat_contexts(with_template(template), ["Well?"])


@pytest.mark.parametrize(
    ("end", "tag"),
    [
        ("<think>\n", "<think>"),
        ("<|START_THINKING|>", "<|START_THINKING|>"),
        ("[THINK]", "[THINK]"),
        ("<reasoning>", "<reasoning>"),
        ("<think>\n\n</think>\n\n", None),
        ("<|END_THINKING|>", None),
        ("think", None),
        ("", None),
    ],
)
def test_answers_asked_for_where_a_model_begins_to_think_are_told(with_template, end, tag):
    template = CHATML + "{% if add_generation_prompt %}" + end + "{% endif %}"
    asked = chat_contexts(with_template(template), ["Does one <think> of it?"])
    told = [sentence for sentence in about_chat(asked) if "begin to think" in sentence]
    assert [sentence.split(" ends prompts in ")[1].split(",")[0] for sentence in told] == ([tag] if tag else [])
