"""What an algorithm learns from: its rows, its batches as TRL's own collators make them, and its options."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import END, preference_of, preferences_of, prompt_of, response_of

from pipeline import store, views
from pipeline.algorithms import base, dpo, kto, sft
from pipeline.algorithms.base import AlgorithmConfig, LoraConfig, Setting
from pipeline.errors import TrainingError
from pipeline.launch import LaunchConfig
from pipeline.models import ModelConfig, load_model
from pipeline.records import Preference, Thumb

# ---- batches, by TRL's own trainers and collators


def setting_of(tiny: ModelConfig, tokenizer: Any, folder: Path) -> Setting:
    return Setting(model=load_model(tiny, training=True), tokenizer=tokenizer, output_dir=folder, seed=1)


def mixed() -> list[Preference]:
    """Six preferences: both answers finished, the chosen one cut, the rejected one cut, and again."""
    found = []
    for number in range(6):
        chosen, rejected = f"Good answer {number}", f"Bad {number}"
        found.append(
            preference_of(
                prompt_of(f"Question {number}?"),
                response_of(chosen, finished=number % 3 != 1),
                response_of(rejected, index=1, finished=number % 3 != 2),
            )
        )
    return found


CUT = {f"Good answer {n}" for n in (1, 4)} | {f"Bad {n}" for n in (2, 5)}


def completions(batch: Any, tokenizer: Any, prefix: str = "") -> Iterator[tuple[str, str, bool]]:
    """(conversation, answer, whether an end follows) of each row; what is masked is no part of the answer."""
    rows = zip(
        batch[f"{prefix}input_ids"], batch[f"{prefix}completion_mask"], batch[f"{prefix}attention_mask"], strict=True
    )
    for ids, mask, attention in rows:
        answer = ids[mask.bool()].tolist()
        assert not mask[~attention.bool()].any()
        ends = answer.count(END)
        assert ends <= 1
        conversation = tokenizer.decode(ids[attention.bool() & ~mask.bool()])
        yield conversation, tokenizer.decode(answer[: answer.index(END)] if ends else answer), bool(ends)


def batches(config: AlgorithmConfig, setting: Setting, preferences: Sequence[Preference]) -> list[Any]:
    return list(config.trainer(config.rows(preferences), setting).get_train_dataloader())


def test_dpos_batches_end_the_answers_that_ended_and_no_others(
    tiny: ModelConfig, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    config = dpo.Config(per_device_train_batch_size=4)
    setting = setting_of(tiny, tiny_tokenizer, tmp_path)
    found = [row for batch in batches(config, setting, mixed()) for row in completions(batch, tiny_tokenizer)]
    assert {answer for _, answer, _ in found} == {f"{word} {n}" for word in ("Good answer", "Bad") for n in range(6)}
    for conversation, answer, ended in found:
        assert conversation == f"<|im_start|>user\nQuestion {answer[-1]}?<|im_end|>\n<|im_start|>assistant\n"
        assert ended == (answer not in CUT)


def test_ktos_batches_end_the_answers_that_ended_and_no_others_the_mismatched_ones_too(
    tiny: ModelConfig, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    config = kto.Config(per_device_train_batch_size=4)
    loaded = batches(config, setting_of(tiny, tiny_tokenizer, tmp_path), mixed())
    assert len(loaded) == 3
    for batch in loaded:
        own = list(completions(batch, tiny_tokenizer))
        rotated = list(completions(batch, tiny_tokenizer, "KL_"))
        assert [answer for _, answer, _ in rotated] == [own[n - 1][1] for n in range(len(own))]
        for conversation, answer, ended in [*own, *rotated]:
            assert ended == (answer not in CUT)
            assert conversation.endswith("<|im_end|>\n<|im_start|>assistant\n")
        for (conversation, answer, _), (same, other, _) in zip(own, rotated, strict=True):
            assert conversation == same
            assert f"Question {answer[-1]}?" in conversation
            assert f"Question {other[-1]}?" not in conversation
        assert batch["label"].tolist() == ["Good" in answer for _, answer, _ in own]


@pytest.mark.parametrize("config", [dpo.Config(max_length=8), kto.Config(max_length=8)], ids=["dpo", "kto"])
def test_prompts_that_leave_no_room_for_any_answer_are_an_error(
    config: AlgorithmConfig, tiny: ModelConfig, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    rows = config.rows(mixed())
    with pytest.raises(TrainingError, match=rf"of all {len(rows)} examples the prompt alone has max_length \(8\)"):
        config.trainer(rows, setting_of(tiny, tiny_tokenizer, tmp_path))


# ---- rows


def test_dpos_rows_are_one_a_preference() -> None:
    rows = dpo.Config().rows(mixed())
    assert len(rows) == 6
    for row in rows:
        assert row["chosen"][0]["content"].startswith("Good")
        assert row["rejected"][0]["content"].startswith("Bad")


def test_ktos_labels_alternate_and_every_answer_is_there_once() -> None:
    for count in [*range(2, 30), 64, 101]:
        rows = kto.Config().rows(preferences_of(count))
        assert [row["label"] for row in rows] == [True, False] * count
        assert sorted(map(repr, rows)) == sorted(map(repr, views.unpaired(preferences_of(count))))


def mismatched_to_the_same_prompt(rows: Sequence[Any], batch: int) -> list[str]:
    """TRL gives each example the completion of the one before it in its batch, the first that of the last."""
    groups = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    return [
        row["prompt"][-1]["content"]
        for group in groups
        for place, row in enumerate(group)
        if len(group) > 1 and group[place - 1]["prompt"] == row["prompt"]
    ]


@pytest.mark.parametrize("batch", [2, 3, 4, 8, 16])
def test_ktos_mismatched_answers_are_never_to_the_same_prompt(batch: int) -> None:
    for count in (count for count in [*range(4, 30), 64, 101] if 2 * count % batch != 1):
        rows = kto.Config(per_device_train_batch_size=batch).rows(preferences_of(count))
        assert mismatched_to_the_same_prompt(rows, batch) == [], count


def test_ktos_mismatched_answers_are_to_other_prompts_where_prompts_have_several_preferences() -> None:
    answers = [response_of(f"answer {n}", index=n) for n in range(4)]
    preferences = [
        preference_of(prompt_of(f"Question {number}?"), one, other)
        for number in range(20)
        for one, other in itertools.combinations(answers, 2)
    ]
    for batch in (2, 4, 8):
        rows = kto.Config(per_device_train_batch_size=batch).rows(preferences)
        assert len(rows) == 240
        assert mismatched_to_the_same_prompt(rows, batch) == []


@pytest.mark.parametrize("config", [dpo.Config(), kto.Config()])
def test_nothing_to_learn_from_is_an_error(config: AlgorithmConfig) -> None:
    with pytest.raises(TrainingError, match=f"{config.name.upper()} has no preferences"):
        config.rows([])


def thumb(question: str, answer: str, good: bool) -> Thumb:
    return Thumb(prompt=prompt_of(question), response=response_of(answer), good=good)


def test_kto_learns_from_the_thumbs_beside_the_preferences(tmp_path: Path, tiny: ModelConfig) -> None:
    store.write_jsonl(tmp_path / "preferences.jsonl", preferences_of(3))
    thumbs = [thumb(f"Thumb {n}?", f"Answer {n}", good=n < 4) for n in range(5)]
    run = base.TrainRun(
        step="train.kto", seed=1, model=tiny, inputs={"label": tmp_path}, work_dir=tmp_path, out=tmp_path
    )
    assert kto.Config().examples(run).counts == {"preferences": 3}
    store.write_jsonl(tmp_path / "thumbs.jsonl", thumbs)
    found = kto.Config().examples(run)
    assert found.counts == {"preferences": 3, "thumbs": 5}
    assert found.alarms == ()
    labels = {row["completion"][0]["content"]: row["label"] for row in found.rows if "Answer" in str(row["completion"])}
    assert labels == {f"Answer {n}": n < 4 for n in range(5)}
    assert len(found.rows) == 11


def test_kto_in_several_processes_says_that_its_reference_point_is_another(tmp_path: Path, tiny: ModelConfig) -> None:
    store.write_jsonl(tmp_path / "preferences.jsonl", preferences_of(8))
    run = base.TrainRun(
        step="train.kto", seed=1, model=tiny, inputs={"label": tmp_path}, work_dir=tmp_path, out=tmp_path
    )
    assert kto.Config().examples(run).alarms == ()
    (alarm,) = kto.Config().examples(run.model_copy(update={"launch": LaunchConfig(gpus=2)})).alarms
    assert "mean of the 2 batches" in alarm


def test_ktos_good_and_bad_examples_are_evenly_mixed_however_many_there_are() -> None:
    for good, bad in ((40, 10), (10, 40), (33, 32), (64, 1)):
        thumbs = [thumb(f"Question {n}?", "Answer", good=n < good) for n in range(good + bad)]
        labels = [row["label"] for row in kto.Config(per_device_train_batch_size=5).rows([], thumbs)]
        assert sum(labels) == good
        for end in range(len(labels) + 1):
            assert abs(sum(labels[:end]) - end * good / (good + bad)) <= 1


@pytest.mark.parametrize(
    ("given", "good", "bad", "weights"),
    [
        ({}, 10, 10, (1, 1)),
        ({}, 10, 40, (4, 1)),
        ({}, 30, 10, (1, 3)),
        ({"desirable_weight": 2.0}, 10, 40, (2, 0.5)),
        ({"undesirable_weight": 2.0}, 10, 40, (8, 2)),
        ({"desirable_weight": 2.0, "undesirable_weight": 3.0}, 10, 40, (2, 3)),
    ],
)
def test_ktos_weights_make_good_and_bad_answers_count_the_same_unless_they_are_given(
    given: Any, good: int, bad: int, weights: tuple[float, float]
) -> None:
    assert kto.Config(**given).weights(good, bad) == pytest.approx(weights)


def test_ktos_weights_reach_the_trainer(tiny: ModelConfig, tiny_tokenizer: Any, tmp_path: Path) -> None:
    config = kto.Config()
    rows = config.rows(preferences_of(2), [thumb("Why?", "So.", good=True), thumb("How?", "Thus.", good=True)])
    trainer: Any = config.trainer(rows, setting_of(tiny, tiny_tokenizer, tmp_path))
    assert (trainer.desirable_weight, trainer.undesirable_weight) == (1.0, 2.0)


def test_ktos_weights_outside_the_papers_range_are_told_in_the_report() -> None:
    rows = kto.Config().rows(preferences_of(4))
    assert kto.Config(desirable_weight=4 / 3, undesirable_weight=1.0)._imbalance(rows) == []
    (alarm,) = kto.Config(desirable_weight=1.0, undesirable_weight=2.0)._imbalance(rows)
    assert "is 0.50; the paper's range is 1 to 1.33" in alarm


def test_kto_refuses_answers_of_one_kind() -> None:
    with pytest.raises(TrainingError, match="3 good answers and 0 bad ones; it needs both kinds"):
        kto.Config().rows([], [thumb(f"{n}?", "Yes", good=True) for n in range(3)])


@pytest.mark.parametrize(("batch", "fitting"), [(2, 5), (4, 5), (8, 7), (12, 11)])
def test_kto_refuses_a_last_batch_of_one_example_and_says_which_size_fits(batch: int, fitting: int) -> None:
    thumbs = [thumb(f"{n}?", "Yes", good=n % 2 == 0) for n in range(25)]
    with pytest.raises(TrainingError, match=f"a single one.*Set per_device_train_batch_size to {fitting}$"):
        kto.Config(per_device_train_batch_size=batch).rows([], thumbs)
    assert len(kto.Config(per_device_train_batch_size=fitting).rows([], thumbs)) == 25


def test_kto_refuses_a_batch_of_answers_to_one_prompt() -> None:
    thumbs = [thumb("Why?", f"Answer {n}", good=n % 2 == 0) for n in range(8)]
    with pytest.raises(TrainingError, match="a batch of 4 answers that are all to one prompt"):
        kto.Config(per_device_train_batch_size=4).rows([], thumbs)


def test_the_report_is_told_of_mismatched_answers_that_are_to_the_same_prompt() -> None:
    config = kto.Config(per_device_train_batch_size=4)
    thumbs = [thumb("Why?" if n < 6 else "How?", f"Answer {n}", good=n % 2 == 0) for n in range(8)]
    rows = config.rows([], thumbs)
    count = len(mismatched_to_the_same_prompt(rows, 4))
    assert count > 0
    (alarm,) = config._neighbours(rows)
    assert alarm.startswith(f"{count} of 8 examples have an answer to their own prompt")
    assert config._neighbours(config.rows(preferences_of(8))) == []


def test_kto_looks_again_at_the_batches_once_prompts_that_are_too_long_are_gone(
    tiny: ModelConfig, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    config = kto.Config(per_device_train_batch_size=4, max_length=60)
    thumbs = [thumb(f"{n}?" if n else "Long?" * 20, "Yes", good=n % 2 == 0) for n in range(6)]
    rows = config.rows([], thumbs)
    with pytest.raises(TrainingError, match="KTO has 5 examples in batches of 4"):
        config.trainer(rows, setting_of(tiny, tiny_tokenizer, tmp_path))


def test_examples_whose_prompt_leaves_no_room_for_the_answer_are_counted() -> None:
    assert base._left_out(5, 5, 60) == []
    assert base._left_out(5, 3, 60) == ["2 of 5 examples were left out: their prompt alone fills max_length (60)."]
    with pytest.raises(TrainingError, match="every prompt alone has max_length \\(60\\) tokens"):
        base._left_out(5, 0, 60)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 0.5}, "less than 0.5"),
        ({"label_smoothing": 0.1, "loss_type": ("hinge",)}, "label_smoothing is read by aot, .* loss_type is hinge"),
        (
            {"label_smoothing": "confidence", "loss_type": ("ipo",)},
            "confidence is for the losses sigmoid, sigmoid_norm",
        ),
        ({"label_smoothing": "confidence", "loss_type": ("sigmoid", "robust")}, "none of aot, .*robust"),
        ({"loss_type": ("exo_pair",)}, "exo_pair needs a label_smoothing above 0"),
    ],
)
def test_label_smoothing_that_no_loss_would_read_is_refused(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dpo.Config(**options)


def test_chosen_answers_that_became_half_as_likely_a_token_are_told_in_the_report() -> None:
    def lines(*last: float) -> list[dict[str, float]]:
        return [{"logratios/chosen_per_token": value} for value in (*[0.0] * 18, *last)]

    assert dpo.Config().alarms(lines(-0.69, -0.69)) == []
    # One bad batch is not a collapse: it is the mean over the last tenth.
    assert dpo.Config().alarms(lines(0.0, -1.3)) == []
    (alarm,) = dpo.Config().alarms(lines(-0.7, -0.7))
    assert "lost 0.70 nats a token" in alarm


# ---- options

OTHER: dict[str, Any] = {
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 3.0,
    "num_train_epochs": 2.0,
    "max_steps": 7,
    "per_device_train_batch_size": 3,
    "gradient_accumulation_steps": 5,
    "max_grad_norm": 0.3,
    "max_length": 99,
    "gradient_checkpointing": True,
    "logging_steps": 2,
    "save_steps": 4,
}
"""A value that is not the default, for each option that transformers is given under its own name."""

ELSEWHERE = {
    "name": "chooses the algorithm",
    "lora": "peft_config",
    "report_to": "a list, or none",
    "launch": "the processes",
}


def test_every_shared_option_reaches_the_trainer_or_is_handled_elsewhere(
    tiny: ModelConfig, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    assert OTHER.keys() | ELSEWHERE.keys() == AlgorithmConfig.model_fields.keys()
    assert not OTHER.keys() & ELSEWHERE.keys()
    setting = setting_of(tiny, tiny_tokenizer, tmp_path)
    for module in (dpo, kto):
        config = module.Config(**OTHER, beta=0.37)
        trainer = config.trainer(config.rows(preferences_of(3)), setting)
        for name, value in OTHER.items():
            assert getattr(trainer.args, name) == value != AlgorithmConfig.model_fields[name].default
        assert trainer.args.beta == 0.37
        assert trainer.args.seed == 1
        assert trainer.args.output_dir == str(tmp_path)
        collator = trainer.data_collator.collator if module is dpo else trainer.data_collator
        assert collator.max_length == 99
        setting = setting_of(tiny, tiny_tokenizer, tmp_path)


def test_trackers_are_none_unless_they_are_named(tiny: ModelConfig, tiny_tokenizer: Any, tmp_path: Path) -> None:
    setting = setting_of(tiny, tiny_tokenizer, tmp_path)
    assert setting.arguments(dpo.Config())["report_to"] == "none"
    assert setting.arguments(dpo.Config(report_to=("wandb",)))["report_to"] == ["wandb"]
    assert "report_to" not in dpo.Config().identity()


@pytest.mark.parametrize(
    ("dtype", "bf16", "fp16"),
    [(torch.float32, False, False), (torch.bfloat16, True, False), (torch.float16, False, True)],
)
def test_training_computes_in_the_dtype_of_the_model(
    dtype: torch.dtype, bf16: bool, fp16: bool, tiny: ModelConfig, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    setting = setting_of(tiny, tiny_tokenizer, tmp_path)
    setting.model.to(dtype)
    arguments = setting.arguments(dpo.Config())
    assert (arguments["bf16"], arguments["fp16"]) == (bf16, fp16)


def test_every_option_of_the_adapter_reaches_it(tiny: ModelConfig, tiny_tokenizer: Any, tmp_path: Path) -> None:
    lora = LoraConfig(r=3, lora_alpha=7, lora_dropout=0.25, target_modules=("q_proj", "v_proj"), use_dora=True)
    found = setting_of(tiny, tiny_tokenizer, tmp_path).peft_config(sft.Config(lora=lora))
    for name in LoraConfig.model_fields:
        value, given = getattr(found, name), getattr(lora, name)
        assert given != LoraConfig.model_fields[name].default
        assert (sorted(value), set(value)) == (list(given), set(given)) if name == "target_modules" else value == given


@pytest.mark.parametrize(("algorithm", "least"), [("dpo", 1), ("kto", 2)])
def test_a_batch_is_large_enough_for_the_algorithm(algorithm: str, least: int) -> None:
    config = {"dpo": dpo.Config, "kto": kto.Config}[algorithm]
    assert config(per_device_train_batch_size=least).per_device_train_batch_size == least
    with pytest.raises(ValueError, match="per_device_train_batch_size"):
        config(per_device_train_batch_size=least - 1)
