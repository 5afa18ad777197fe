"""What the doctor finds, and that its errors stop a run before a model loads."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from servers.completions import completion_server
from tiny import CHATML, END, make_model, make_tokenizer, preferences_of, prompt_of

from pipeline import cli, doctor
from pipeline.algorithms import dpo, kto, rloo, sft
from pipeline.algorithms.base import Setting
from pipeline.demonstrations import Demonstration
from pipeline.doctor_data import (
    demonstration_findings,
    folded,
    label_findings,
    length_findings,
    prompt_findings,
    text_findings,
)
from pipeline.doctor_memory import loads, memory_findings, work_of
from pipeline.doctor_rendering import ANSWER, CLOSE, OPEN, rendering_findings
from pipeline.findings import Finding
from pipeline.memory import Tuned
from pipeline.models import ModelConfig, load_model, load_tokenizer
from pipeline.recipe import Recipe, load
from pipeline.records import Message, Prompt

EIGHT = "please write down a short poem about the"
"""A run of eight words."""


def levels(found: list[Finding]) -> list[str]:
    return [each.level for each in found]


# ---- prompts


def test_prompts_are_the_same_whatever_their_case_and_spacing_and_system_message() -> None:
    assert folded(prompt_of("What  IS\nit?")) == folded(prompt_of("what is it?", system="Be brief."))
    assert folded(prompt_of("What is it?")) != folded(prompt_of("What was it?"))


def test_a_held_out_prompt_that_is_trained_on_is_an_error_that_names_both() -> None:
    (found,) = prompt_findings([prompt_of("Why?", "t1")], [prompt_of("why?", "h1"), prompt_of("How?", "h2")], "at")
    assert (found.level, found.where) == ("error", "compare.prompts.files")
    assert found.what == "1 of 2 held-out prompts are trained on, such as 'h1' (as 't1')"


def test_a_repeated_prompt_is_a_warning_on_its_own_side() -> None:
    twice = [prompt_of("Why?", "a"), prompt_of("Why?", "b"), prompt_of("Who?", "c")]
    (found,) = prompt_findings(twice, [prompt_of("How?")], "at")
    assert (found.level, found.where) == ("warning", "at")
    assert found.what == "1 of 3 prompts repeat another, such as 'b' (as 'a')"


@pytest.mark.parametrize(("more", "level"), [(8, "warning"), (9, "info")])
def test_a_held_out_prompt_is_near_if_more_than_half_of_its_words_are_in_shared_runs(more: int, level: str) -> None:
    # Who speaks counts as a word: 9 of 9 + `more` words are shared.
    trained = [prompt_of(EIGHT + " sea", "t"), prompt_of("Something else altogether", "u")]
    assert levels(prompt_findings(trained, [prompt_of(EIGHT + " other" * more, "h")], "at")) == [level]


def test_clean_prompts_are_said_to_be_clean() -> None:
    found = prompt_findings([prompt_of("Why?")], [prompt_of("How?")], "at")
    assert levels(found) == ["info"]


def test_prompts_that_fill_max_length_are_counted_and_all_of_them_are_an_error() -> None:
    steps = {"dpo": dpo.Config(max_length=64)}
    (some,) = length_findings([10, 64, 70], 3, steps)
    assert (some.level, some.where) == ("warning", "train.dpo.max_length")
    assert some.what == "2 of 3 prompts alone have 64 tokens or more"
    assert levels(list(length_findings([64, 70], 2, steps))) == ["error"]
    assert not list(length_findings([10, 63], 2, steps))


def test_of_many_prompts_only_the_longest_are_counted_and_the_others_are_not_said_to_be_too_long() -> None:
    (found,) = length_findings([64, 70], 60_000, {"dpo": dpo.Config(max_length=64)})
    assert (found.level, found.what) == ("warning", "at least 2 of 60000 prompts alone have 64 tokens or more")


def test_a_step_with_data_of_its_own_is_not_measured_by_the_prompts_of_others(tmp_path: Path) -> None:
    learned = sft.Config.model_validate({"max_length": 64, "data": {"train": tmp_path / "rows.jsonl"}})
    assert not list(length_findings([64, 70], 2, {"sft": learned}))


# ---- demonstrations


def shown(where: str, ask: str, say: str) -> Demonstration:
    return Demonstration(
        where=where, messages=(Message(role="user", content=ask), Message(role="assistant", content=say))
    )


def test_a_test_row_that_is_learned_and_a_held_out_prompt_that_is_learned_are_errors() -> None:
    learned = [shown("a:1", "Why?", "So."), shown("a:2", "Who?", "Me."), shown("a:3", "who?", "ME.")]
    tested = [shown("b:1", "WHY?", "so."), shown("b:2", "Why?", "Else.")]
    found = demonstration_findings(
        learned, tested, [prompt_of("who?", "h1"), prompt_of("How?", "h2")], "train.sft.data"
    )
    assert [(each.level, each.where, each.what) for each in found] == [
        ("warning", "train.sft.data.train", "1 of 3 demonstrations repeat another, such as 'a:3' (as 'a:2')"),
        ("error", "train.sft.data.test", "1 of 2 test rows are learned, such as 'b:1' (as 'a:1')"),
        ("error", "compare.prompts.files", "1 of 2 held-out prompts are learned, such as 'h1' (as 'a:3')"),
    ]


def test_clean_demonstrations_are_counted_by_their_kind() -> None:
    texts = [Demonstration(where="c:1", text="One."), Demonstration(where="c:2", text="Two.")]
    (found,) = demonstration_findings([shown("a:1", "Why?", "So."), *texts], [], [prompt_of("How?")], "at")
    assert (found.level, found.what) == ("info", "1 conversations and 2 texts to learn, 0 to test on, all different")


def test_text_for_perplexity_that_is_learned_is_an_error_and_one_whose_prompt_is_trained_on_a_warning() -> None:
    learned = {"train.sft.data.train": [shown("a:1", "Why?", "So."), shown("a:2", "Who?", "Me.")]}
    text = [shown("b:1", "WHY?", "so."), shown("b:2", "Why?", "Else."), Demonstration(where="b:3", text="Who? Me.")]
    found = text_findings(text, learned, [prompt_of("how?"), prompt_of("why?", "p1")])
    assert [(each.level, each.what) for each in found] == [
        ("error", "1 of 3 rows are learned, such as 'b:1' (as 'a:1')"),
        ("warning", "2 of 3 rows answer a prompt that is trained on, such as 'b:1' (as 'p1')"),
    ]
    assert levels(text_findings(text[1:], learned, [])) == ["info"]


# ---- labels


def summary_of(**counts: Any) -> dict[str, Any]:
    return {"pairs": 100, "decided": 90, "ties": 5, "abstained": {"empty": 5}, "preferences": 90, **counts}


def test_labels_are_counted_and_so_are_the_updates_that_they_are_good_for() -> None:
    steps = {"dpo": dpo.Config(per_device_train_batch_size=2, gradient_accumulation_steps=2)}
    labels, step = label_findings(summary_of(), (0, 0), steps)
    assert labels.what == "90 of 100 pairs are decided, 5 ties, 5 left open"
    assert (step.level, step.what) == ("info", "90 examples, about 23 updates")


def test_too_few_labels_and_too_many_ties_are_warnings_and_none_is_an_error() -> None:
    few = label_findings(summary_of(ties=60, decided=35, preferences=35), (0, 0), {"dpo": dpo.Config()})
    assert levels(few) == ["warning", "warning"]
    none = label_findings(summary_of(decided=0, preferences=0), (0, 0), {"dpo": dpo.Config()})
    assert (none[1].level, none[1].where) == ("error", "train.dpo")


def test_kto_needs_both_kinds_of_thumbs_and_a_rare_kind_is_named() -> None:
    steps = {"kto": kto.Config()}
    assert levels(label_findings(summary_of(decided=0, preferences=0), (500, 0), steps))[1:] == ["error"]
    rare = label_findings(summary_of(decided=0, preferences=0), (500, 100), steps)
    assert [each.what for each in rare[1:]] == ["500 good answers and 100 bad ones", "600 examples, about 19 updates"]


# ---- the template


@pytest.mark.parametrize("config", [dpo.Config(max_length=256), kto.Config(max_length=256)], ids=["dpo", "kto"])
@pytest.mark.parametrize("template", ["as it is", "of a model that reasons", "without what it asks with"])
def test_what_is_shown_as_trained_on_is_what_trl_trains_on(
    config: Any, template: str, tiny: Any, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(tiny)
    if template == "of a model that reasons":
        # As Qwen3's: an answer gets an empty block that the model was not asked with.
        block = "('<think>\n\n</think>\n\n' if message['role'] == 'assistant' else '')"
        tokenizer.chat_template = CHATML.replace("message['content']", f"{block} + message['content']")
        assert tokenizer.chat_template != CHATML
    if template == "without what it asks with":
        # As DeepSeek-R1's: it asks with a block that an answered conversation lacks.
        asked = "<|im_start|>assistant\n"
        assert asked in CHATML
        tokenizer.chat_template = CHATML.replace(asked, asked + "<think>\n")
    preferences = [
        each.model_copy(update={"chosen": each.chosen.model_copy(update={"text": ANSWER})})
        for each in preferences_of(4)
    ]
    prompt = preferences[0].prompt
    found = rendering_findings(tokenizer, prompt)
    assert [each.level for each in found if each.check == "template"] == ["info"] * (1 if template == "as it is" else 2)
    shown = found[0].what.partition(": ")[2].replace(CLOSE, "").split(OPEN)
    setting = Setting(model=load_model(tiny), tokenizer=tokenizer, output_dir=tmp_path, seed=1)
    rows = list(config.trainer(config.rows(preferences), setting).train_dataset)
    own = [
        [tokenizer.decode(row["prompt_ids"]), tokenizer.decode(row.get("chosen_ids") or row["completion_ids"])]
        for row in rows
        if row.get("label", True)
    ]
    assert shown in own
    assert shown[1] == ANSWER + "<|im_end|>"
    assert ("<think>" in shown[0]) == (template == "without what it asks with")


def test_a_template_that_leaves_out_or_refuses_a_system_message_is_an_error_before_anything_loads(
    tmp_path: Path,
) -> None:
    loop = "{% for message in messages %}"
    ways = {
        "leaves out": CHATML.replace(loop, "{% for message in messages if message['role'] != 'system' %}"),
        "refuses": "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML,
    }
    said = {
        "leaves out": "the chat template leaves system messages out, and 2 of 2 prompts have one",
        "refuses": "its chat template refuses a conversation of system, user (no system); leave out the system message",
    }
    for way, template in ways.items():
        folder = tmp_path / way
        make_model(folder)
        make_tokenizer(folder, template=template)
        recipe = recipe_of(tmp_path, folder)
        words = [f"{block}.prompts.system=Be brief." for block in ("generate", "compare")]
        plain = doctor.before(load(recipe), (10**11, False))
        assert not [each for each in plain if each.level == "error"]
        (error,) = [each for each in doctor.before(load(recipe, words), (10**11, False)) if each.level == "error"]
        assert said[way] in error.what
        assert error.where == "model.base"


def test_a_template_that_writes_todays_date_is_a_warning(tiny: Any) -> None:
    tokenizer = load_tokenizer(tiny)
    tokenizer.chat_template = "{{ 'Today is ' + strftime_now('%d %b %Y') + '.' }}" + CHATML
    (found,) = [each for each in rendering_findings(tokenizer, prompt_of("Why?")) if each.level != "info"]
    assert (found.level, found.check) == ("warning", "template")
    assert "today's date" in found.what


def test_an_end_token_that_the_template_never_writes_is_an_error(tmp_path: Path) -> None:
    make_model(tmp_path)
    make_tokenizer(tmp_path)
    tokenizer = load_tokenizer(ModelConfig(base=str(tmp_path), quantization="none"))
    tokenizer.eos_token = "<|endoftext|>"
    (found,) = rendering_findings(tokenizer, prompt_of("Why?"))
    assert found.level == "error"
    assert "the end token '<|endoftext|>' is not in it: the model would learn another end" in found.what


def test_a_template_that_rewrites_the_answer_is_an_error(tiny: Any) -> None:
    tokenizer = load_tokenizer(tiny)
    tokenizer.chat_template = tokenizer.chat_template.replace("message['content']", "message['content'] | upper")
    (found,) = rendering_findings(tokenizer, prompt_of("WHY?"))
    assert found.level == "error"
    assert "THIS IS THE ANSWER." in found.what


def test_with_the_end_token_as_padding_the_end_is_still_trained_on(tiny: Any) -> None:
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    tokenizer = load_tokenizer(tiny)
    tokenizer.pad_token = tokenizer.eos_token
    assert any("ends are not masked" in each.what for each in rendering_findings(tokenizer, prompt_of("Why?")))
    rows = [{"prompt_ids": [5], "chosen_ids": [6, END], "rejected_ids": [6, 7, 8, END]}]
    batch = DataCollatorForPreference(pad_token_id=END)(rows)
    assert batch["completion_mask"].tolist() == [[0, 1, 1, 0, 0], [0, 1, 1, 1, 1]]


# ---- memory


def test_what_does_not_fit_is_an_error_with_the_key_paths_of_what_would() -> None:
    recipe = load("recipes/rlaif.yaml")
    found = {
        each.where: each for each in memory_findings(recipe, {"train": 60, "heldout": 60}, 1_700_000_000, gpu=False)
    }
    assert found["train.dpo"].level == "error"
    assert found["train.dpo"].remedy.startswith("this fits: train.dpo.per_device_train_batch_size=1")
    hopeless = memory_findings(recipe, {"train": 60, "heldout": 60}, 600_000_000, gpu=False)
    assert all("take a smaller model" in each.remedy for each in hopeless if each.where == "train.dpo")


def test_a_plan_for_a_gpu_says_that_it_was_not_measured() -> None:
    found = list(memory_findings(load("recipes/rlaif.yaml"), {"train": 60}, 24_000_000_000, gpu=True))
    assert {each.level for each in found} == {"info"}
    assert all("a prediction that was not measured" in each.what for each in found)


def test_a_plan_counts_the_processes_of_the_launch_and_of_a_step_that_has_its_own() -> None:
    recipe = load("recipes/rlaif.yaml", ["launch={gpus: 2, zero: 2}", "train.ppo.launch={gpus: 3}"])
    found = {each.step: each for each in loads(recipe, {"train": 60}, gpu=False)}
    dpo, ppo = found["train.dpo"], found["train.ppo"]
    assert (dpo.work.zero, dpo.work.world, dpo.processes) == (2, 2, 2)
    assert (ppo.work.zero, ppo.work.world, ppo.processes) == (0, 3, 3)
    told = {each.where: each.what for each in memory_findings(recipe, {"train": 60}, 10**12, gpu=False)}
    assert " GB in each of 2 processes of " in told["train.dpo"]


def supervised(folder: Path, base: Path, **options: Any) -> Recipe:
    (folder / "shown.jsonl").write_text('{"text": "Three."}\n')
    (folder / "heldout.jsonl").write_text('{"id": "h", "prompt": "How?"}\n')
    return Recipe.model_validate(
        {
            "model": {"base": str(base), "quantization": "none"},
            "train": {"sft": {"data": {"train": str(folder / "shown.jsonl")}, "max_length": 64, **options}},
            "compare": {
                "prompts": {"files": str(folder / "heldout.jsonl")},
                "judges": ["rules"],
                "sampler": {"name": "local", "max_new_tokens": 8},
            },
        }
    )


@pytest.mark.parametrize(
    ("told", "options", "length"),
    [
        ({"train.sft": 40}, {}, 40),
        ({"train.sft": 100}, {}, 64),
        ({"train.sft": 40}, {"packing": True}, 64),
        ({}, {}, 64),
    ],
)
def test_a_row_of_demonstrations_is_as_long_as_the_longest_and_a_packed_one_as_max_length(
    told: dict[str, int], options: dict[str, Any], length: int, tiny_folder: Path, tmp_path: Path
) -> None:
    recipe = supervised(tmp_path, tiny_folder, **options)
    (work,) = [each.work for each in loads(recipe, told, gpu=False) if each.step == "train.sft"]
    assert (work.length, work.answer) == (length, length)


def test_demonstrations_are_measured_in_tokens_with_their_ends(tiny_tokenizer: Any) -> None:
    # A byte is a token, and a turn is <|im_start|>role\n...<|im_end|>\n with one token for each mark.
    shown = [
        Demonstration(where="a:1", text="Three."),
        Demonstration(
            where="a:2", messages=(Message(role="user", content="a"), Message(role="assistant", content="b"))
        ),
    ]
    assert doctor.longest(tiny_tokenizer, shown[:1]) == len("Three.") + 1
    assert doctor.longest(tiny_tokenizer, shown) == (1 + len("user\na") + 1 + 1) + (1 + len("assistant\nb") + 1)


def test_what_is_trained_of_the_base_is_planned_for_in_training_and_in_the_comparison(
    tiny_folder: Path, tmp_path: Path
) -> None:
    recipe = supervised(tmp_path, tiny_folder, tune="lm_head")
    works = {each.step: each.work for each in loads(recipe, {"heldout": 20}, gpu=False)}
    assert (works["train.sft"].rank, works["train.sft"].tuned) == (0, Tuned("lm_head"))
    assert (works["answers"].frozen, works["answers"].policies) == (0, (Tuned("lm_head"),))


@pytest.mark.parametrize(
    ("algorithm", "frozen", "reference"),
    [
        (sft.Config(start_from="sft"), 0, False),
        (dpo.Config(), 0, False),
        (dpo.Config(start_from="sft"), 1, False),
        (kto.Config(start_from="sft", tune="full"), 0, True),
        (rloo.Config(reward="reward_model", start_from="sft"), 2, False),
    ],
)
def test_a_policy_that_goes_on_has_one_more_copy_of_what_it_trains(
    algorithm: Any, frozen: int, reference: bool, tiny: ModelConfig
) -> None:
    work = work_of(algorithm, tiny, prompt=8, answer=8, candidates=2)
    assert (work.frozen, work.reference) == (frozen, reference)


# ---- the whole


def recipe_of(folder: Path, base: Path, held_out: str = "How?") -> Path:
    for name, text in (("train", "Why?"), ("heldout", held_out)):
        (folder / f"{name}.jsonl").write_text(
            Prompt(id=name, messages=prompt_of(text).messages).model_dump_json() + "\n"
        )
    path = folder / "recipe.yaml"
    path.write_text(
        f"model: {{base: {base}, quantization: none, dtype: fp32}}\n"
        f"generate: {{prompts: {{files: {folder}/train.jsonl}}, sampler: {{name: local, max_new_tokens: 8}}}}\n"
        "judge: length\ntrain: {dpo: {}}\n"
        f"compare: {{prompts: {{files: {folder}/heldout.jsonl}}, judges: [rules]}}\n"
    )
    return path


def test_the_command_tells_as_json_and_ends_with_0(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(tmp_path, tiny_folder)
    assert cli.main(["doctor", str(recipe), "--run", str(tmp_path / "run"), "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {each["check"] for each in found} == {"data", "template", "memory"}
    assert not (tmp_path / "run").exists()


NO_KEY = "api_key_env: the environment variable NO_SUCH_KEY is not set"
NO_SERVER = "http://localhost:1/v1"


@pytest.mark.parametrize(
    ("override", "where", "told"),
    [
        ("judge={name: rating, model: m, price: free, api_key_env: NO_SUCH_KEY}", "judge", NO_KEY),
        ("judge={name: human, votes: {files: [nowhere.jsonl]}}", "judge", "votes.files: there is no file "),
        (
            f"generate.sampler={{name: openai, model: m, base_urls: {NO_SERVER}, api_key_env: NO_SUCH_KEY}}",
            "generate.sampler",
            NO_KEY,
        ),
        (
            f"train.ppo={{reward: tiny_ppo:capitals, rollouts: {{base_url: {NO_SERVER}, api_key_env: NO_SUCH_KEY}}}}",
            "train.ppo",
            f"rollouts.{NO_KEY}",
        ),
        ("launch={gpus: 2, zero: 2}", "train.dpo", "launch.zero needs DeepSpeed, which is not installed"),
    ],
)
def test_what_a_run_would_refuse_before_it_begins_ends_the_command_with_2_and_is_a_warning_in_a_plan_for_elsewhere(
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    override: str,
    where: str,
    told: str,
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "deepspeed" else find(name, *rest)
    )
    command = ["doctor", str(recipe_of(tmp_path, tiny_folder)), "--run", str(tmp_path / "run"), override]
    assert cli.main(command) == 2
    refused = capsys.readouterr()
    assert f"{where}: {told}" in refused.err and not refused.out
    assert cli.main([*command, "--memory", "24GB", "--format", "json"]) == 0
    found = [Finding.model_validate(each) for each in json.loads(capsys.readouterr().out)]
    (lacking,) = [each for each in found if each.check == "machine"]
    assert (lacking.level, lacking.where) == ("warning", where) and lacking.what.startswith(told)
    assert "train.dpo" in [each.where for each in found if each.check == "memory"]


def test_a_plan_for_elsewhere_needs_a_sound_recipe_all_the_same(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["doctor", str(recipe_of(tmp_path, tiny_folder)), "--memory", "24GB"]
    assert cli.main([*command, "generate.prompts.files=nowhere.jsonl"]) == 2
    assert "generate.prompts.files: there is no file" in capsys.readouterr().err
    assert cli.main([*command, f"compare.prompts.files={tmp_path / 'train.jsonl'}"]) == 2
    assert "comparing needs prompts that were not trained on" in capsys.readouterr().err


def test_too_little_memory_ends_the_command_with_2(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["doctor", str(recipe_of(tmp_path, tiny_folder)), "--run", str(tmp_path / "run"), "--memory"]
    assert cli.main([*command, "100MB"]) == 2
    assert "doctor: " in capsys.readouterr().err
    assert cli.main([*command, "lots"]) == 2
    assert "'lots' found; needs to be a size such as 24GB" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_whose_held_out_prompt_is_trained_on_stops_before_it_generates(
    tiny_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(tmp_path, tiny_folder, held_out="why?")
    assert cli.main(["run", str(recipe), "--run", str(tmp_path / "run")]) == 2
    told = capfd.readouterr().err
    assert "compare.prompts.files: 1 of 1 held-out prompts are trained on" in told
    assert not (tmp_path / "run" / "steps" / "generate").exists()


@pytest.mark.parametrize(("word", "count"), [("temperature=1.0", 0), ("temperature=0.7", 1), ("top_k=5", 1)])
def test_held_out_answers_whose_kl_cannot_be_told_are_a_finding(
    word: str, count: int, tiny_folder: Path, tmp_path: Path
) -> None:
    recipe = load(recipe_of(tmp_path, tiny_folder), [f"generate.sampler.{word}"])
    found = [each for each in doctor.before(recipe, (10**11, False)) if each.check == "sampler"]
    assert [(each.level, each.where) for each in found] == [("info", "generate.sampler")] * count


@pytest.mark.slow
def test_a_run_whose_held_out_prompts_are_an_empty_file_stops_before_it_generates(
    tiny_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(tmp_path, tiny_folder)
    (tmp_path / "heldout.jsonl").write_text("")
    assert cli.main(["run", str(recipe), "--run", str(tmp_path / "run")]) != 0
    told = capfd.readouterr().err
    assert f"{tmp_path}/heldout.jsonl: no prompt is there" in told
    assert "Traceback" not in told
    assert not (tmp_path / "run" / "steps" / "generate").exists()


def test_a_tokenizer_without_a_template_is_a_finding_and_no_traceback(tmp_path: Path) -> None:
    make_model(tmp_path / "model")
    make_tokenizer(tmp_path / "model", template=None)
    found = doctor.before(load(recipe_of(tmp_path, tmp_path / "model")), (10**11, False))
    (error,) = [each for each in found if each.level == "error"]
    assert (error.check, error.where) == ("tokenizer", "model.base")
    assert "has no chat template" in error.what


@pytest.mark.parametrize(
    ("options", "where", "what"),
    [
        ({"optim": "adamv"}, "train.sft.optim", "'adamv' is none that transformers knows"),
        ({"optim": "adamw_bnb_8bit"}, "train.sft.optim", "adamw_bnb_8bit needs a GPU"),
        ({"tune": "layers", "layers": ["model.layers.7"]}, "train.sft.layers", "nothing called 'model.layers.7'"),
    ],
)
def test_an_optimizer_or_a_layer_that_there_is_not_is_found_before_the_base_loads(
    options: dict[str, Any], where: str, what: str, tiny_folder: Path, tmp_path: Path
) -> None:
    found = doctor.before(supervised(tmp_path, tiny_folder, **options), (10**11, False))
    (error,) = [each for each in found if each.level == "error"]
    assert error.where == where
    assert what in error.what


def test_layers_that_there_are_and_an_optimizer_of_gpus_in_a_plan_for_one_are_no_error(
    tiny_folder: Path, tmp_path: Path
) -> None:
    recipe = supervised(tmp_path, tiny_folder, tune="layers", layers=["model.layers.1", "lm_head"], optim="adamw_8bit")
    assert not [each for each in doctor.before(recipe, (10**11, True)) if each.level == "error"]


def test_a_server_that_does_not_sample_yet_is_a_warning_and_one_that_cannot_is_an_error(
    tiny_folder: Path, tmp_path: Path
) -> None:
    path = recipe_of(tmp_path, tiny_folder)
    with completion_server(tiny_folder) as server:
        block = f"{{ppo: {{reward: tiny_ppo:capitals, rollouts: {{base_url: {server.url}}}}}}}"
        path.write_text(path.read_text().replace("{dpo: {}}", block))

        def found() -> tuple[str, str, str]:
            findings = doctor.before(load(path), (10**11, False))
            (finding,) = [each for each in findings if each.check == "server"]
            return finding.level, finding.where, finding.remedy

        assert found() == ("info", "train.ppo.rollouts", "")
        server.max_model_len = 100
        assert found()[:2] == ("error", "train.ppo.rollouts") and "--max-model-len 1024" in found()[2]
    assert found() == ("warning", "train.ppo.rollouts", "start the server, or mend base_url")


def test_a_step_that_reads_an_earlier_one_is_told_to_the_worker_in_its_order() -> None:
    recipe = load("recipes/rlaif.yaml")
    told = json.loads(json.dumps(doctor.Examining.of(recipe).model_dump(mode="json"), sort_keys=True))
    assert list(doctor.Examining.model_validate(told).recipe.train) == list(recipe.train)
