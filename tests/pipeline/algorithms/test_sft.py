"""Supervised fine-tuning: which tokens are learned, by pencil; what is left; and that packed examples do not mix."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CHATML, END, job_of, make_architecture, preferences_of

from pipeline import store, train
from pipeline.algorithms import sft
from pipeline.algorithms.base import Setting
from pipeline.demonstrations import Demonstration
from pipeline.errors import TrainingError
from pipeline.models import ModelConfig, load_model, load_tokenizer, tokenizer_of
from pipeline.records import Message
from pipeline.train import Training


def shown(*turns: str, finished: bool | None = None) -> Demonstration:
    """Turns of user and assistant by turns, the user first."""
    roles = ("user", "assistant")
    messages = tuple(Message(role=roles[n % 2], content=turn) for n, turn in enumerate(turns))
    return Demonstration(where="here:1", messages=messages, finished=finished)


def learned(example: sft.Example, tokenizer: Any) -> str:
    assert len(example.ids) == len(example.labels)
    assert all(label in (token, sft.MASKED) for token, label in zip(example.ids, example.labels, strict=True))
    return str(tokenizer.decode([label for label in example.labels if label != sft.MASKED]))


# ---- what is learned


def test_the_assistants_turns_are_learned_each_with_its_end_and_nothing_else(tiny_tokenizer: Any) -> None:
    (example,) = sft.encode(tiny_tokenizer, shown("Hi?", "Hello.", "Well?", "Yes."), assistant_only=True)
    assert tiny_tokenizer.decode(example.ids) == (
        "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
        "<|im_start|>user\nWell?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>"
    )
    assert learned(example, tiny_tokenizer) == "Hello.<|im_end|>Yes.<|im_end|>"


def test_with_the_loss_on_everything_every_token_is_learned(tiny_tokenizer: Any) -> None:
    (example,) = sft.encode(tiny_tokenizer, shown("Hi?", "Hello."), assistant_only=False)
    assert example.labels == example.ids


def test_an_answer_that_was_cut_does_not_teach_to_stop(tiny_tokenizer: Any) -> None:
    (example,) = sft.encode(tiny_tokenizer, shown("Hi?", "Hello", finished=False), assistant_only=True)
    assert learned(example, tiny_tokenizer) == "Hello"


def test_a_template_that_rewrites_earlier_turns_gives_an_example_a_turn(tiny: ModelConfig) -> None:
    # As Qwen3 does: what was thought is not shown again once it was answered.
    tokenizer = tokenizer_of(tiny)
    tokenizer.chat_template = CHATML.replace(
        "message['content'] +", "(message['content'] if loop.last or message['role'] == 'user' else 'said') +"
    )
    found = sft.encode(tokenizer, shown("Hi?", "Hello.", "Well?", "Yes."), assistant_only=True)
    assert [learned(each, tokenizer) for each in found] == ["Hello.<|im_end|>", "Yes.<|im_end|>"]
    assert "assistant\nsaid<|im_end|>" in tokenizer.decode(found[1].ids), "as it is when the second turn is written"


def test_a_turn_that_spells_a_control_token_is_text(tiny_tokenizer: Any) -> None:
    (example,) = sft.encode(tiny_tokenizer, shown("Hi?", "a<|im_end|>b"), assistant_only=True)
    assert [label for label in example.labels if label != sft.MASKED].count(END) == 1


def test_a_plain_text_is_learned_whole_and_ends_once(tiny_tokenizer: Any) -> None:
    for text in ("One line.", "One line.<|im_end|>"):
        (example,) = sft.encode(tiny_tokenizer, Demonstration(where="x", text=text), assistant_only=True)
        assert tiny_tokenizer.decode(example.ids) == "One line.<|im_end|>"
        assert example.labels == example.ids


def test_a_text_that_brings_its_first_token_along_does_not_begin_twice(tiny: ModelConfig) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer: Any = tokenizer_of(tiny)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    (example,) = sft.encode(tokenizer, Demonstration(where="x", text="<|im_start|>One."), assistant_only=True)
    assert example.ids.count(1) == 1


def test_where_the_pad_token_is_the_end_token_the_end_is_still_learned(
    tiny: ModelConfig, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    # The usual way to lose it: labels are masked wherever the pad token stands.
    tokenizer = tokenizer_of(tiny)
    tokenizer.pad_token = tokenizer.eos_token
    setting = Setting(model=load_model(tiny, training=True), tokenizer=tokenizer, output_dir=tmp_path, seed=1)
    config = sft.Config(per_device_train_batch_size=2)
    rows = config.fitting(config.encoded([shown("Hi?", "No."), shown("Hi?", "A longer answer.")], tokenizer))
    (batch,) = config.sft_trainer(rows, [], setting).get_train_dataloader()
    assert (batch["labels"] == END).sum(dim=1).tolist() == [1, 1]
    assert (batch["labels"][batch["attention_mask"] == 0] == sft.MASKED).all()


def test_the_first_token_of_a_text_is_not_counted_as_learned(tiny: ModelConfig, tmp_path: Path) -> None:
    data = tmp_path / "texts.jsonl"
    data.write_text(json.dumps({"text": "abc"}) + "\n")
    out = finished(tmp_path, tiny, sft.Config(data={"train": str(data)}, max_steps=1))
    assert store.read_json(out / "summary.json")["tokens_learned"] == 3, "b, c and the end; nothing predicts a"


# ---- cutting and packing


def test_what_does_not_fit_is_cut_and_what_has_nothing_to_learn_is_left_out(tiny_tokenizer: Any) -> None:
    config = sft.Config(max_length=40)
    examples = config.encoded([shown("Hi?", "x" * 50), shown("?" * 50, "Yes.")], tiny_tokenizer)
    rows = config.fitting(examples)
    assert [len(row["input_ids"]) for row in rows] == [40]
    assert config._cut(examples) == [
        "1 of 2 examples are longer than max_length (40): cut there.",
        "1 of 2 examples were left out: nothing to learn within max_length.",
    ]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral", "qwen3"])
def test_packed_examples_are_blind_to_each_other(kind: str, tmp_path: Path) -> None:
    make_architecture(tmp_path, kind)
    model = ModelConfig(base=str(tmp_path), quantization="none", dtype="fp32")
    texts = [Demonstration(where="x", text=text) for text in ("Some words here.", "Others.", "And a third text.")]

    def loss(packing: bool) -> tuple[float, int]:
        setting = Setting(
            model=load_model(model, training=True), tokenizer=load_tokenizer(model), output_dir=tmp_path / "o", seed=1
        )
        config = sft.Config(packing=packing, max_length=64, per_device_train_batch_size=3)
        rows = config.fitting(config.encoded(texts, setting.tokenizer))
        trainer: Any = config.sft_trainer(rows, [], setting)
        (batch,) = trainer.get_train_dataloader()
        with torch.no_grad():
            found = trainer.compute_loss(trainer.model, batch, num_items_in_batch=None)
        return float(found), len(batch["input_ids"])

    apart, rows = loss(False)
    together, packed = loss(True)
    assert (rows, packed) == (3, 1)
    assert together == pytest.approx(apart, rel=1e-5)


def test_a_recurrent_model_is_not_packed(tmp_path: Path) -> None:
    make_architecture(tmp_path, "mamba")
    model = ModelConfig(base=str(tmp_path), quantization="none")
    setting = Setting(model=load_model(model, training=True), tokenizer=None, output_dir=tmp_path, seed=1)
    with pytest.raises(TrainingError, match="packing: the state of mamba would run on"):
        sft.Config(packing=True).sft_trainer([], [], setting)


def test_batches_of_one_length_waste_no_padding(tiny: ModelConfig, tiny_tokenizer: Any, tmp_path: Path) -> None:
    setting = Setting(model=load_model(tiny, training=True), tokenizer=tiny_tokenizer, output_dir=tmp_path, seed=1)
    texts = [Demonstration(where="x", text="a" * length) for length in (5, 40) * 8]
    config = sft.Config(group_by_length=True, per_device_train_batch_size=4)
    rows = config.fitting(config.encoded(texts, tiny_tokenizer))
    for batch in config.sft_trainer(rows, [], setting).get_train_dataloader():
        assert batch["attention_mask"].all()


# ---- what is left


def finished(top: Path, tiny: ModelConfig, config: sft.Config, inputs: dict[str, Path] | None = None) -> Path:
    job = job_of(top, Training(seed=1, model=tiny, algorithm=config), step="train.sft", inputs=inputs)
    train.finish(job)
    return job.out


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("data")
    for name, numbers in (("train", range(16)), ("test", range(16, 20))):
        turns = [
            [{"role": "user", "content": f"{n} + {n}?"}, {"role": "assistant", "content": f"It is {2 * n}."}]
            for n in numbers
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"messages": each}) + "\n" for each in turns))
    return {"train": str(folder / "train.jsonl"), "test": str(folder / "test.jsonl")}


def test_the_loss_on_rows_that_are_not_learned_falls_and_is_told(
    tiny: ModelConfig, tmp_path: Path, data: dict[str, Any]
) -> None:
    config = sft.Config(data=data, learning_rate=1e-2, gradient_accumulation_steps=1, num_train_epochs=3.0)
    out = finished(tmp_path, tiny, config)
    summary = store.read_json(out / "summary.json")
    held_out = summary["held_out"]
    assert held_out["examples"] == 4
    assert held_out["loss_after"] < 0.7 * held_out["loss_before"]
    # 16 answers "It is N." with their ends: 9 bytes and one for each further digit, N = 0 ... 30.
    assert summary["tokens_learned"] == 16 * 9 + sum(2 * n >= 10 for n in range(16))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").open()]
    assert (lines[0]["step"], lines[0]["eval_loss"]) == (0, held_out["loss_before"])
    assert (lines[-1]["step"], lines[-1]["eval_loss"]) == (12, held_out["loss_after"])


def test_the_loss_is_the_mean_over_the_tokens_that_are_learned(
    tiny: ModelConfig, tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path, data: dict[str, Any]
) -> None:
    from tiny import full_logprobs

    out = finished(tmp_path, tiny, sft.Config(data=data, max_steps=1))
    config = sft.Config()
    read = [shown(f"{n} + {n}?", f"It is {2 * n}.") for n in range(16, 20)]
    expected = []
    for example in config.encoded(read, tiny_tokenizer):
        logprobs = full_logprobs(tiny_model, example.ids)
        expected += [-logprobs[at - 1] for at, label in enumerate(example.labels) if label != sft.MASKED]
    before = store.read_json(out / "summary.json")["held_out"]["loss_before"]
    assert before == pytest.approx(sum(expected) / len(expected), rel=1e-4)


def test_without_files_the_chosen_answers_are_learned(tiny: ModelConfig, tmp_path: Path) -> None:
    label = tmp_path / "label"
    label.mkdir()
    store.write_jsonl(label / "preferences.jsonl", preferences_of(8))
    assert sft.Config().reads() == ("label",)
    out = finished(tmp_path, tiny, sft.Config(max_steps=1), {"label": label})
    assert store.read_json(out / "summary.json")["demonstrations"] == 8


def test_nothing_that_fits_is_an_error_before_a_step(tiny: ModelConfig, tmp_path: Path, data: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match=r"none of 16 demonstrations .* max_length \(8\); raise it"):
        finished(tmp_path, tiny, sft.Config(data=data, max_length=8))


@pytest.mark.parametrize("eval_steps", [0, 1])
def test_test_rows_that_do_not_fit_are_an_error_if_none_does_and_told_if_some_do_not(
    eval_steps: int, tiny: ModelConfig, tmp_path: Path, data: dict[str, Any]
) -> None:
    def rows(*prompts: str) -> dict[str, Any]:
        path = tmp_path / f"test{len(prompts)}.jsonl"
        path.write_text("".join(json.dumps({"prompt": each, "completion": "Yes. " * 4}) + "\n" for each in prompts))
        return {**data, "test": str(path)}

    # A prompt of n bytes is n + 19 tokens with its template, the answer 21: of 48 the short one needs 46, the middle
    # one 57, and the long one leaves nothing.
    short, long = "Is it?", "Is it? " * 10
    options: dict[str, Any] = {"max_length": 48, "max_steps": 1, "eval_steps": eval_steps}
    with pytest.raises(TrainingError, match=r"^train\.sft: none of 1 test rows .* max_length \(48\); raise it"):
        finished(tmp_path / "none", tiny, sft.Config(data=rows(long), **options))
    some = sft.Config(data=rows(short, short + " Yes or no?", long), **options)
    summary = store.read_json(finished(tmp_path / "some", tiny, some) / "summary.json")
    assert summary["held_out"]["examples"] == 2
    assert summary["alarms"] == [
        "1 of 3 test examples are longer than max_length (48): cut there.",
        "1 of 3 test examples were left out: nothing to learn within max_length.",
    ]
