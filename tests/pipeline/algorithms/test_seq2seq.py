"""SFT and DPO of encoder-decoders against the formulas in NumPy's float64, and what they refuse."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import END, job_of, make_architecture, preference_of, preferences_of, prompt_of, response_of
from transformers import AutoModelForSeq2SeqLM

from pipeline import models, store, train
from pipeline.algorithms import dpo, seq2seq, sft, tokens
from pipeline.algorithms.base import Setting
from pipeline.demonstrations import Demonstration
from pipeline.errors import TrainingError
from pipeline.models import ModelConfig, load_model, load_tokenizer
from pipeline.records import Message
from pipeline.sampling.base import plan
from pipeline.sampling.local import Config as Local
from pipeline.train import Training

KINDS = pytest.mark.parametrize("kind", ["t5", "bart"])
START = {"t5": 0, "bart": END}


def setting_of(folder: Path, top: Path) -> Setting:
    config = ModelConfig(base=str(folder), quantization="none", dtype="fp32")
    model, tokenizer = load_model(config, training=True), load_tokenizer(config)
    return Setting(model=model, tokenizer=tokenizer, output_dir=top, seed=1)


def exact(folder: Path, start: int, prompt: list[int], answer: list[int]) -> Any:
    """Log-probabilities of an answer's tokens, one forward pass of transformers' own model, without padding."""
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    with torch.no_grad():
        written = torch.tensor([[start, *answer[:-1]]])
        logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=written).logits[0].double().numpy()
    shifted = logits - logits.max(axis=-1, keepdims=True)
    logprobs = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return logprobs[np.arange(len(answer)), answer]


def first_batch_loss(trainer: Any) -> float:
    (batch,) = trainer.get_train_dataloader()
    trainer.model.eval()
    with torch.no_grad():
        return float(trainer.compute_loss(trainer.model, batch))


@KINDS
def test_sft_is_the_mean_over_all_tokens_of_the_answers(
    kind: str, architectures: dict[str, Path], tmp_path: Path
) -> None:
    setting = setting_of(architectures[kind], tmp_path)
    turns = [("Hi?", "No."), ("And how are you?", "Well enough, thank you.")]
    shown = [
        Demonstration(where="x", messages=(Message(role="user", content=ask), Message(role="assistant", content=say)))
        for ask, say in turns
    ]
    config = sft.Config(per_device_train_batch_size=2)
    rows = config.fitting(config.encoded(shown, setting.tokenizer, apart=True))
    found = first_batch_loss(config.sft_trainer(rows, [], setting))
    each = []
    for ask, say in turns:
        prompt = setting.tokenizer(ask)["input_ids"]
        answer = [*setting.tokenizer(say, add_special_tokens=False)["input_ids"], END]
        each.append(exact(architectures[kind], START[kind], prompt, answer))
    assert found == pytest.approx(-np.concatenate(each).mean(), rel=1e-5)


@KINDS
def test_dpo_is_the_papers_loss_against_the_policy_as_it_starts(
    kind: str, architectures: dict[str, Path], tmp_path: Path
) -> None:
    setting = setting_of(architectures[kind], tmp_path)
    preferences = [
        preference_of(prompt_of("Hi?"), response_of("Hello."), response_of("No", index=1)),
        preference_of(prompt_of("And you?"), response_of("Well", finished=False), response_of("What?", index=1)),
    ]
    config = dpo.Config(
        beta=0.3, loss_type=("sigmoid", "sft"), loss_weights=(1.0, 0.5), label_smoothing="confidence",
        per_device_train_batch_size=2,
    )  # fmt: skip
    trainer: Any = config.trainer(config.rows(preferences), setting)
    rows = [trainer.train_dataset[place] for place in range(2)]
    logp = {
        side: np.array([exact(architectures[kind], START[kind], r["prompt_ids"], r[f"{side}_ids"]).sum() for r in rows])
        for side in ("chosen", "rejected")
    }
    for side in logp:
        assert [row[f"ref_{side}"] for row in rows] == pytest.approx(logp[side], rel=1e-5)
    assert [row["chosen_ids"][-1] == END for row in rows].count(True) == 1, "one answer was cut"
    # The policy is moved away from its reference by hand, so that the margin is not zero.
    moved = [{**row, "ref_chosen": row["ref_chosen"] - 1.0, "ref_rejected": row["ref_rejected"] + 0.5} for row in rows]
    with torch.no_grad():
        found = float(trainer.compute_loss(trainer.model.eval(), {"rows": moved}))
    z, wrong = 0.3 * 1.5, 0.1  # preference_of is 0.9 sure
    preferred = (1 - wrong) * np.log1p(np.exp(-z)) + wrong * np.log1p(np.exp(z))
    tokens = sum(len(row["chosen_ids"]) for row in rows)
    assert found == pytest.approx(preferred - 0.5 * logp["chosen"].sum() / tokens, rel=1e-5)


def test_the_gradient_of_the_loss_is_that_of_its_formula() -> None:
    # d loss / d margin = -beta ((1 - e) sigmoid(-z) - e sigmoid(z)), by hand.
    margin = torch.tensor([2.0, -1.0, 0.0], dtype=torch.float64, requires_grad=True)
    wrong = torch.tensor([0.0, 0.2, 0.5], dtype=torch.float64)
    seq2seq.sigmoid_loss(margin, wrong, 0.4).sum().backward()
    z = 0.4 * np.array([2.0, -1.0, 0.0])
    sigmoid = 1 / (1 + np.exp(-z))
    expected = -0.4 * ((1 - wrong.numpy()) * (1 - sigmoid) - wrong.numpy() * sigmoid)
    assert margin.grad is not None
    assert margin.grad.numpy() == pytest.approx(expected, abs=1e-12)
    assert margin.grad[2] == 0, "a tie pulls nowhere at zero margin"


@KINDS
def test_dropout_of_the_base_does_not_move_the_policy_from_its_reference(
    kind: str, architectures: dict[str, Path], tmp_path: Path
) -> None:
    label = tmp_path / "label"
    label.mkdir()
    store.write_jsonl(label / "preferences.jsonl", preferences_of(4))
    model = ModelConfig(base=str(architectures[kind]), quantization="none", dtype="fp32")
    config = dpo.Config(max_steps=1, per_device_train_batch_size=4, gradient_accumulation_steps=1)
    job = job_of(tmp_path, Training(seed=1, model=model, algorithm=config), inputs={"label": label})
    train.finish(job)
    (line,) = lines(job.out / "metrics.jsonl")
    assert line["loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert abs(line["rewards/chosen"]) < 1e-5
    card = (job.out / "README.md").read_text()
    assert "AutoModelForSeq2SeqLM" in card


def lines(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.open()]


@pytest.mark.parametrize(("kind", "dropout"), [("t5", "dropout_rate"), ("bart", "dropout")])
def test_a_policy_that_was_trained_answers_as_it_was_trained(kind: str, dropout: str, tmp_path: Path) -> None:
    # On one answer alone: it becomes the likeliest, token by token, by the code that samples.
    make_architecture(tmp_path / kind, kind, **{dropout: 0.0})
    label = tmp_path / "label"
    label.mkdir()
    one = preference_of(prompt_of("Hi?"), response_of("Yes"), response_of("No", index=1))
    store.write_jsonl(label / "preferences.jsonl", [one])
    model = ModelConfig(base=str(tmp_path / kind), quantization="none", dtype="fp32")
    config = sft.Config(tune="full", max_steps=60, learning_rate=3e-3, warmup_steps=0, lr_scheduler_type="constant")
    job = job_of(tmp_path, Training(seed=1, model=model, algorithm=config), inputs={"label": label})
    train.finish(job)
    built = Local(temperature=0.0, max_new_tokens=8, batch_size=4).build(model, {"sft": job.out}, reference=True)
    (batch,) = plan([prompt_of("Hi?")], samples=1, batch_size=4, seed=1, purpose="heldout")
    (answer,) = built.sample(batch, "sft")
    assert (answer.text, answer.finished) == ("Yes", True)


def test_the_loss_on_test_rows_is_measured_as_often_as_the_recipe_says(
    architectures: dict[str, Path], tmp_path: Path
) -> None:
    data = tmp_path / "shown.jsonl"
    data.write_text(json.dumps({"prompt": "Hi?", "completion": "Yes."}) + "\n")
    model = ModelConfig(base=str(architectures["t5"]), quantization="none", dtype="fp32")
    config = sft.Config(data={"train": str(data), "test": str(data)}, max_steps=5, eval_steps=2)
    job = job_of(tmp_path, Training(seed=1, model=model, algorithm=config))
    train.finish(job)
    assert [line["step"] for line in lines(job.out / "metrics.jsonl") if "eval_loss" in line] == [0, 2, 4, 5]


def test_what_an_encoder_decoder_cannot_learn_from_is_refused(architectures: dict[str, Path], tmp_path: Path) -> None:
    setting = setting_of(architectures["t5"], tmp_path)
    with pytest.raises(TrainingError, match="trained with sft, sigmoid; leave out hinge"):
        config = dpo.Config(loss_type=("hinge",))
        config.trainer(config.rows(preferences_of(2)), setting)
    with pytest.raises(TrainingError, match="here:3: an encoder-decoder reads a prompt and writes an answer"):
        sft.Config()._check_encoder([Demonstration(where="here:3", text="One text.")])
    for options, told in (({"packing": True}, "packing: not for"), ({"assistant_only_loss": False}, "assistant_only")):
        with pytest.raises(TrainingError, match=told):
            sft.Config(**options)._check_encoder([])


def test_an_answer_is_cut_to_what_the_prompt_leaves_and_a_prompt_that_leaves_nothing_is_left_out(
    architectures: dict[str, Path],
) -> None:
    tokenizer = models.load_tokenizer(ModelConfig(base=str(architectures["t5"])))
    turns = [Message(role="user", content="12345")]  # five bytes and the end of what is read
    cut = tokens.sides(tokenizer, turns, "abcdef", True, 9)
    assert cut is not None
    assert (len(cut.prompt), tokenizer.decode(cut.answer)) == (6, "abc")
    assert tokens.sides(tokenizer, turns, "abcdef", True, 6) is None
