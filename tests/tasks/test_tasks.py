"""Task and group definitions, and what `resolve` makes of names and paths."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from pathlib import Path

import pytest

from wmdp_fast import PromptTemplate
from wmdp_fast.exceptions import DataUnavailableError, TaskError
from wmdp_fast.tasks.compat import COMPATS
from wmdp_fast.tasks.definitions import GROUPS, SUBJECTS, TAGS, TASKS
from wmdp_fast.tasks.resolve import resolve

MMLU_GROUPS = ["mmlu_stem", "mmlu_other", "mmlu_social_sciences", "mmlu_humanities"]


def names(items) -> list[str]:
    return [item.name for item in items]


# Names.


@pytest.mark.parametrize("request_", ["wmdp_bio,wmdp_cyber", "wmdp_bio, wmdp_cyber,", ["wmdp_bio", "wmdp_cyber"]])
def test_names_come_with_commas_or_as_a_list(request_):
    assert names(resolve(request_).tasks) == ["wmdp_bio", "wmdp_cyber"]


def test_a_group_brings_its_tasks_and_the_groups_below_it():
    selection = resolve("mmlu")
    assert names(selection.groups) == ["mmlu", *MMLU_GROUPS]
    assert len(selection.tasks) == 57
    assert selection.leaves(GROUPS["mmlu"]) == selection.tasks
    assert [len(selection.leaves(group)) for group in selection.groups] == [57, 19, 13, 12, 13]


def test_a_task_named_twice_is_run_once():
    selection = resolve("mmlu_astronomy,mmlu_stem,mmlu")
    assert len(selection.tasks) == 57
    assert selection.tasks[0].name == "mmlu_astronomy"
    assert names(selection.groups) == ["mmlu", *MMLU_GROUPS]  # parents first, whatever was named first


def test_a_tag_brings_tasks_without_a_group():
    selection = resolve("mmlu_stem_tasks")
    assert len(selection.tasks) == 19
    assert selection.groups == ()


def test_robust_wmdp_has_two_halves_of_six_categories():
    selection = resolve("wmdp_bio_categorized_mcqa")
    assert names(selection.groups) == ["wmdp_bio_categorized_mcqa", "wmdp_bio_robust", "wmdp_bio_shortcut"]
    assert len(selection.tasks) == 12
    robust = selection.leaves(GROUPS["wmdp_bio_robust"])
    assert {task.test_split for task in robust} == {"robust"}
    assert robust[1].name == "wmdp_bio_robust_dual_use_virology"
    assert robust[1].config == "dual_use_virology"
    assert {task.description for task in selection.tasks} == {TASKS["wmdp_bio"].description}


def test_the_cloze_task_scores_the_choices_texts_by_acc_norm_alone():
    (task,) = resolve("wmdp_bio_cloze_verified").tasks
    assert (task.doc_to_text, task.choices, task.metrics) == ("question", "texts", ("acc_norm",))
    assert task.description == "Complete the following biology questions with the correct answer.\n\n"


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("wmdp_biology", "wmdp_bio"), ("mmlu_astronmy", "mmlu_astronomy"), ("mmlu_continuations", "mmlu_continuation")],
)
def test_an_unknown_name_is_an_error_that_names_what_is_close(name, suggestion):
    with pytest.raises(TaskError, match=f"unknown task '{name}'; did you mean .*{suggestion}"):
        resolve(name)


@pytest.mark.parametrize("nothing", ["", " , ", []])
def test_no_name_is_an_error(nothing):
    with pytest.raises(TaskError, match="no task was named"):
        resolve(nothing)


def test_a_list_of_names_longer_than_a_path_can_be_is_no_path():
    assert len(resolve(",".join(f"mmlu_{subject}" for subject in SUBJECTS)).tasks) == 57


# Subjects.


def test_subjects_keep_only_theirs_and_the_groups_above_them():
    selection = resolve("mmlu,wmdp_bio", subjects="astronomy, world religions")
    assert names(selection.tasks) == ["mmlu_astronomy", "mmlu_world_religions", "wmdp_bio"]
    assert names(selection.groups) == ["mmlu", "mmlu_stem", "mmlu_humanities"]
    assert selection.groups[0].children == ("mmlu_stem", "mmlu_humanities")
    assert names(selection.leaves(selection.groups[1])) == ["mmlu_astronomy"]


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        (["astronmy"], "unknown subject 'astronmy'; did you mean astronomy"),
        ("virology", "'virology' is in none of the tasks"),
        (",", "the list of subjects is empty"),
    ],
)
def test_a_subject_that_selects_nothing_is_an_error(asked, problem):
    with pytest.raises(TaskError, match=problem):
        resolve("mmlu_stem", subjects=asked)


# Few-shot.


def test_wmdp_stays_zero_shot_and_the_warning_says_so():
    selection = resolve("wmdp_bio,mmlu_astronomy", num_fewshot=5)
    assert [task.num_fewshot for task in selection.tasks] == [0, 5]
    assert selection.warnings == ("wmdp_bio is defined as 0-shot: num_fewshot=5 is ignored, as in lm-eval",)
    (warning,) = resolve("wmdp", num_fewshot=2).warnings
    assert warning.startswith("wmdp_bio, wmdp_chem, wmdp_cyber are defined as 0-shot: num_fewshot=2 is ignored")


@pytest.mark.parametrize("num_fewshot", [None, 0])
def test_zero_shots_need_no_warning(num_fewshot):
    selection = resolve("wmdp,mmlu", num_fewshot=num_fewshot)
    assert selection.warnings == ()
    assert {task.num_fewshot for task in selection.tasks} == {0}


def test_a_negative_number_of_shots_is_an_error():
    with pytest.raises(TaskError, match="num_fewshot is -1; it must be a whole number from 0"):
        resolve("mmlu", num_fewshot=-1)


# Versions of lm-eval.


def test_before_0_4_4_one_newline_follows_the_description():
    old, new = (resolve("wmdp_bio,mmlu", compat=version) for version in ("0.4.2", "0.4.9"))
    assert old.tasks[0].description == "The following are multiple choice questions (with answers) about biology.\n"
    for before, after in zip(old.tasks, new.tasks, strict=True):
        assert before.description + "\n" == after.description
        assert dataclasses.replace(before, description=after.description, version=after.version) == after


def test_versions_of_tasks_and_groups_are_those_of_the_time():
    old, new = (resolve("wmdp_bio,mmlu,wmdp_bio_robust", compat=version) for version in ("0.4.2", "0.4.9"))
    assert json.dumps([task.version for task in old.tasks[:2] + old.tasks[-1:]]) == "[0, 0.0, 1]"
    assert json.dumps([task.version for task in new.tasks[:2] + new.tasks[-1:]]) == "[1, 1.0, 1]"
    assert [group.version for group in old.groups[:2]] == ["N/A", "N/A"]
    assert [group.version for group in new.groups[:2]] == ["2", "2"]


def test_before_0_4_4_a_template_of_ones_own_loses_its_last_newline_too(tmp_path):
    (tmp_path / "x.jsonl").touch()
    old, new = (
        resolve(tmp_path / "x.jsonl", template="{{question}}\n\n", description="Hello\r\n", compat=version).tasks[0]
        for version in ("0.4.2", "current")
    )
    assert (old.doc_to_text, old.description) == ("{{question}}\n", "Hello")
    assert (new.doc_to_text, new.description) == ("{{question}}\n\n", "Hello\n")


def test_newlines_are_dropped_as_jinja_drops_them():
    jinja2 = pytest.importorskip("jinja2")
    for text in ["", "a", "a\n", "a\n\n", "\n", "a\r\n", "a\r", "a\n ", "a\n\r\n"]:
        rendered = jinja2.Environment(autoescape=False).from_string(text).render()
        task = dataclasses.replace(TASKS["wmdp_bio"], description=text)
        ours = COMPATS["0.4.2"].task(task).description
        # Jinja also makes every newline a \n, which `resolve` does with a description it is given.
        assert ours.replace("\r\n", "\n").replace("\r", "\n") == rendered


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("0.4.2", {"llama": False, "gemma": True, "gemma2": False}),
        ("0.4.9", {"llama": False, "gemma": True, "gemma3_text": True}),
        ("current", {"llama": None, "gemma": None, "gpt_neox": None}),
    ],
)
def test_special_tokens_are_added_as_that_version_did(version, expected):
    assert {model: COMPATS[version].add_special_tokens(model) for model in expected} == expected


def test_an_unknown_version_is_an_error_that_lists_the_known_ones():
    with pytest.raises(TaskError, match=r"'0\.3'.*0\.4\.2, 0\.4\.9, current"):
        resolve("wmdp", compat="0.3")


# Local files.


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder to put empty files into; nothing here reads them."""
    monkeypatch.chdir(tmp_path)

    def touch(*paths: str) -> Path:
        for path in paths:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).touch()
        return tmp_path

    return touch


def test_a_file_is_a_task_named_after_it(folder):
    folder("questions/My quiz (2).jsonl.gz")
    (task,) = resolve("questions/My quiz (2).jsonl.gz").tasks
    assert task.name == task.alias == "My_quiz_2_"
    assert task.dataset == "questions/My quiz (2).jsonl.gz"
    assert task.test_files == (Path("questions/My quiz (2).jsonl.gz"),)
    assert (task.description, task.doc_to_text, task.choices, task.num_fewshot) == ("", "mmlu", "letters", 0)


def test_a_path_may_have_a_comma_and_need_no_slash(folder):
    folder("a,b.csv", "c.json")
    assert names(resolve(["a,b.csv", "c.json"]).tasks) == ["a_b", "c"]


def test_a_folder_is_a_group_with_a_task_for_each_file(folder):
    folder("quiz/b.csv", "quiz/a.jsonl", "quiz/notes.txt", "quiz/.hidden.csv", "quiz/dataset_infos.json")
    selection = resolve("quiz/")
    assert names(selection.tasks) == ["a", "b"]
    assert [(group.name, group.children) for group in selection.groups] == [("quiz", ("a", "b"))]


def test_a_known_name_wins_over_a_file_of_that_name(folder):
    folder("wmdp/x.csv")
    assert resolve("wmdp").tasks[0].dataset == "cais/wmdp"
    assert names(resolve("./wmdp").tasks) == ["x"]
    assert names(resolve(Path("wmdp")).tasks) == ["x"]


def test_two_files_of_one_name_are_an_error_that_names_both(folder):
    folder("one/x.csv", "two/x.jsonl", "three/wmdp_bio.csv")
    with pytest.raises(TaskError, match=r"one.x\.csv and two.x\.jsonl would both be called 'x'"):
        resolve("one/x.csv,two/x.jsonl")
    with pytest.raises(TaskError, match=r"the task 'wmdp_bio' and three.wmdp_bio\.csv would both"):
        resolve("wmdp,three/wmdp_bio.csv")


def test_a_missing_file_is_said_to_be_missing(folder):
    folder()
    for name in ("./nothing.jsonl", "nothing.jsonl", f"nowhere{os.sep}"):
        with pytest.raises(FileNotFoundError, match="no such question file or folder"):
            resolve(name)


def test_a_folder_without_questions_is_an_error(folder):
    folder("empty/readme.md")
    with pytest.raises(DataUnavailableError, match=r"empty: no question file.*\.parquet"):
        resolve("./empty")


def test_few_shot_examples_are_beside_the_file(folder):
    folder("x.jsonl", "x_dev.csv", "alone.jsonl")
    (task,) = resolve("x.jsonl", num_fewshot=3).tasks
    assert (task.num_fewshot, task.fewshot_split, task.fewshot_files) == (3, "dev", (Path("x_dev.csv"),))
    with pytest.raises(TaskError, match=r"alone\.jsonl has no few-shot examples.*alone_dev beside alone\.jsonl"):
        resolve("alone.jsonl", num_fewshot=3)


@pytest.mark.parametrize(
    ("template", "description", "doc_to_text", "choices", "metrics"),
    [
        (None, "", "mmlu", "letters", ("acc",)),
        (
            "mmlu",
            "The following are multiple choice questions (with answers) about space travel.\n\n",
            "mmlu",
            "letters",
            ("acc",),
        ),
        (
            "mmlu_continuation",
            "The following are questions (with answers) about space travel.\n\n",
            "question",
            "texts",
            ("acc", "acc_norm"),
        ),
        ("wmdp_bio", TASKS["wmdp_bio"].description, "mmlu", "letters", ("acc",)),
        ("wmdp_bio_cloze_verified", TASKS["wmdp_bio_cloze_verified"].description, "question", "texts", ("acc_norm",)),
        ("{{question}}\n{{choices[0]}}", "", "{{question}}\n{{choices[0]}}", "letters", ("acc",)),
        ("Q: {{question}}\nA:", "", "Q: {{question}}\nA:", "texts", ("acc", "acc_norm")),
    ],
)
def test_a_template_says_how_local_questions_are_asked(folder, template, description, doc_to_text, choices, metrics):
    folder("space_travel.jsonl")
    (task,) = resolve("space_travel.jsonl", template=template).tasks
    assert task.name == "space_travel"
    assert task.description == description
    assert (task.doc_to_text, task.choices, task.metrics) == (doc_to_text, choices, metrics)
    assert task.revision is None


def test_description_and_choices_override_the_templates(folder):
    folder("x.jsonl")
    (task,) = resolve("x.jsonl", template="mmlu", description="Hello.\n", choices="texts").tasks
    assert (task.description, task.choices, task.metrics) == ("Hello.\n", "texts", ("acc", "acc_norm"))


def test_a_template_that_is_neither_known_nor_jinja_is_an_error(folder):
    folder("x.jsonl")
    with pytest.raises(TaskError, match="unknown template 'mmmlu'; did you mean mmlu"):
        resolve("x.jsonl", template="mmmlu")


@pytest.mark.parametrize("option", [{"template": "mmlu"}, {"description": "x"}, {"choices": "texts"}])
def test_options_for_local_files_are_refused_where_there_are_none(option):
    with pytest.raises(TaskError, match=f"{next(iter(option))} is for question files given by path; wmdp_bio"):
        resolve("wmdp_bio", **option)


def test_every_task_makes_a_prompt_template():
    for task in TASKS.values():
        template = PromptTemplate(
            task.doc_to_text,
            choices=task.choices,
            description=task.description,
            target_delimiter=task.target_delimiter,
            fewshot_delimiter=task.fewshot_delimiter,
        )
        assert (template.doc_to_text, template.choices) == (task.doc_to_text, task.choices)


# Against the installed lm-eval.


@pytest.fixture(scope="module")
def lm_eval_load():
    """lm-eval's own loading of its task files, with a tiny dataset in place of the hub's."""
    pytest.importorskip("lm_eval")
    import datasets
    import lm_eval.tasks

    root = Path(lm_eval.tasks.__file__).parent
    manager = lm_eval.tasks.TaskManager(include_path=[root / "wmdp", root / "mmlu"], include_defaults=False)
    row = {"question": ["Is it?"], "choices": [["yes", "no", "maybe", "never"]], "answer": [1], "subject": ["none"]}
    tiny = datasets.DatasetDict({split: datasets.Dataset.from_dict(row) for split in ("test", "dev")})
    loaded = {}

    def load(name: str):
        if name not in loaded:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(datasets, "load_dataset", lambda *_, **__: tiny)
                loaded[name] = manager.load([name])
        return loaded[name]

    return load


LM_EVAL_NAMES = ["wmdp", "mmlu", "mmlu_continuation", *TAGS]


@pytest.mark.parametrize("name", LM_EVAL_NAMES)
def test_tasks_are_lm_evals_in_its_order(lm_eval_load, name):
    assert names(resolve(name).tasks) == list(lm_eval_load(name)["tasks"])


@pytest.mark.parametrize("name", ["wmdp", "mmlu", "mmlu_continuation"])
def test_groups_are_lm_evals_in_its_order(lm_eval_load, name):
    theirs = lm_eval_load(name)["groups"]
    ours = resolve(name).groups
    assert {group.name: list(group.children) for group in ours} == lm_eval_load(name)["group_map"]
    assert names(ours) == list(theirs)
    for group in ours:
        their_group = theirs[group.name]
        assert group.alias == (their_group.alias or their_group.name)
        assert group.version == their_group.version
        assert [(metric, True) for metric in group.metrics] == [
            (metric.metric, metric.weight_by_size) for metric in their_group.aggregate_metric_list
        ]
        assert names(resolve(name).leaves(group)) == [task.task_name for task in their_group.get_all_tasks()]


@pytest.mark.parametrize("num_fewshot", [0, 5])
@pytest.mark.parametrize("name", ["wmdp", "mmlu", "mmlu_continuation"])
def test_a_tasks_configuration_is_lm_evals_key_for_key(lm_eval_load, name, num_fewshot):
    for task in resolve(name, num_fewshot=num_fewshot).tasks:
        theirs = lm_eval_load(name)["tasks"][task.name]
        config = copy.deepcopy(theirs.config)
        if config.num_fewshot is None:
            config.num_fewshot = num_fewshot  # as lm-eval's evaluator sets it
        dumped = config.to_dict()
        dumped["metadata"]["config_source"] = "wmdp_fast"
        # The text of the JSON, so that the order of keys and 1 against 1.0 count.
        assert json.dumps(task.lm_eval_config()) == json.dumps(dumped)


@pytest.mark.parametrize("name", ["wmdp", "mmlu", "mmlu_continuation"])
def test_aliases_metrics_and_versions_are_lm_evals(lm_eval_load, name):
    for task in resolve(name).tasks:
        theirs = lm_eval_load(name)["tasks"][task.name]
        assert task.alias == theirs.dump_config().get("task_alias", task.name)
        assert list(task.metrics) == list(theirs.aggregation())
        assert task.higher_is_better == theirs.higher_is_better()
        assert json.dumps(task.version) == json.dumps(theirs.VERSION)


@pytest.mark.parametrize("name", ["wmdp", "mmlu", "mmlu_continuation"])
def test_explicit_numbers_of_shots_are_lm_evals(lm_eval_load, name):
    theirs = lm_eval_load(name)["tasks"]
    assert {task: TASKS[task].num_fewshot for task in theirs} == {
        task: loaded.config.num_fewshot for task, loaded in theirs.items()
    }
