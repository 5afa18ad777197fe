"""What is exported loads without this project and answers as it did in the run; what cannot be served is refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import (
    job_of,
    make_adapter,
    make_architecture,
    make_model,
    make_tokenizer,
    preferences_of,
    prompt_of,
    response_of,
)

from pipeline import adapters, cli, models, plan, store, train, weights
from pipeline.algorithms import scoring
from pipeline.export import licence_of
from pipeline.export_card import Exported, card
from pipeline.models import BUILT_IN, ModelConfig
from pipeline.recipe import load
from pipeline.sampling.base import Batch
from pipeline.sampling.local import Config as Local
from pipeline.train import Training

PLAIN = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, base, text = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base or folder, dtype=torch.float32)
if base:
    from peft import PeftModel
    model = PeftModel.from_pretrained(model, folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
turns = [{"role": "user", "content": text}]
ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
found = model.generate(**ids, do_sample=False, max_new_tokens=12)[0, ids["input_ids"].shape[1]:].tolist()
assert not [name for name in sys.modules if name.startswith(("pipeline", "judges"))]
print(json.dumps(tokenizer.decode(found, skip_special_tokens=True)))
"""
"""Transformers and PEFT alone, in a process that cannot see this project."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose card names a licence. Its layers are wide enough for NF4, its output layer is tied."""
    folder = tmp_path_factory.mktemp("bases") / "base"
    make_model(folder, hidden=64, tied=True)
    make_tokenizer(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    return folder


def run_of(
    top: Path, base: Path, model: str, left: Path | None = None, one: str = "{name: dpo}", **config: Any
) -> Path:
    """A run whose steps `one` and `two` are done: adapters with random weights, or what was `left` by a training."""
    for name in ("train", "heldout"):
        (top / f"{name}.jsonl").write_text(f'{{"id": "{name}", "prompt": "{name}?"}}\n')
    run = top / "run"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text(
        f"model: {{base: {base}, {model}}}\n"
        f"generate: {{prompts: {{files: {top}/train.jsonl}}, sampler: local}}\n"
        f"judge: length\ntrain: {{one: {one}, two: {{name: dpo}}, three: {{name: dpo}}}}\n"
        f"compare: {{prompts: {{files: {top}/heldout.jsonl}}, judges: [rules]}}\n"
    )
    for state in plan.open_run(load(run / "recipe.yaml"), run).states():
        name = state.step.name.partition(".")[2]
        inputs = {each: {"fingerprint": "", "digest": None} for each in state.step.inputs}
        if name in ("one", "two"):
            staging = top / f"{name}.staging"
            if left is not None:
                shutil.copytree(left, staging)
            else:
                make_adapter(base, staging, seed=len(name) + (name == "two"))
                adapter = staging / "adapter_config.json"
                adapter.write_text(json.dumps({**json.loads(adapter.read_text()), **config}))
                (staging / "training_args.bin").write_bytes(b"a pickle")
                (staging / "summary.json").write_text('{"examples": 8, "updates": 2}')
            store.publish(staging, state.path, {"inputs": inputs, "data": []})
    return run


def answer(base: Path, adapter: Path, model: ModelConfig) -> str:
    """What the run's own code says, greedily."""
    sampler = Local(temperature=0.0, max_new_tokens=12).build(model, {"one": adapter}, reference=False)
    return sampler.sample(Batch((prompt_of("What is it?"),), 1, seed=1), "one")[0].text


def plain(folder: Path, base: str = "") -> str:
    command = [sys.executable, "-c", PLAIN, str(folder), base, "What is it?"]
    environment = {"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout.strip().splitlines()[-1]))


def trained(top: Path, base: Path, inputs: dict[str, Path] | None = None, **options: Any) -> Path:
    """What three updates of an algorithm leave, on an unquantised base in fp32."""
    label = top / "label"
    label.mkdir(parents=True)
    store.write_jsonl(label / "preferences.jsonl", preferences_of(12))
    short = {"max_steps": 3, "learning_rate": 1e-2, "gradient_accumulation_steps": 1, **options}
    model = ModelConfig(base=str(base), quantization="none", dtype="fp32")
    training = Training(seed=1, model=model, algorithm=short)  # type: ignore[arg-type]
    job = job_of(top, training, step="train.one", inputs={"label": label, **(inputs or {})})
    train.finish(job)
    return job.out


def adapter_of(run: Path, name: str = "one") -> Path:
    (folder,) = [each for each in (run / "steps" / f"train.{name}").iterdir() if each.is_dir()]
    return folder


@pytest.mark.slow
def test_a_model_merged_from_an_nf4_run_answers_in_plain_transformers_as_it_did_in_the_run(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path, base, "quantization: nf4, dtype: fp32")
    out = tmp_path / "out"
    assert cli.main(["export", str(run), "one", "--to", str(out), "--merge", "--dtype", "fp32"]) == 0
    assert "vllm serve one" in capsys.readouterr().out
    model = ModelConfig(base=str(base), quantization="nf4", dtype="fp32")
    said = answer(base, adapter_of(run), model)
    assert plain(out / "one") == said
    # On the original weights the adapter is another model, which is why it is not merged into those.
    assert answer(base, adapter_of(run), model.model_copy(update={"quantization": "none"})) != said
    card = (out / "README.md").read_text()
    assert 'license: "mit"' in card
    gap = float(card.partition("its logits within ")[2].partition(" ")[0])
    assert gap < 1e-3


@pytest.mark.slow
def test_several_adapters_are_served_on_one_base_and_load_in_plain_peft(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path, base, "quantization: none, dtype: fp32")
    out = tmp_path / "out"
    assert cli.main(["export", str(run), "one", "two", "--to", str(out)]) == 0
    told = capsys.readouterr().out
    served = f"vllm serve {base} --enable-lora --max-lora-rank 8 --max-loras 2 --lora-modules one=one two=two"
    assert served in told
    assert served in (out / "README.md").read_text()
    said = answer(base, adapter_of(run), ModelConfig(base=str(base), quantization="none", dtype="fp32"))
    assert plain(out / "one", str(base)) == said
    assert json.loads((out / "one" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    assert not store.verify(out, hashes=True)
    names = {path.name for path in out.rglob("*") if path.is_file()}
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    assert "tokenizer.json" in names


@pytest.mark.parametrize(
    ("options", "tied"),
    [
        ({"tune": "full"}, True),
        ({"tune": "lm_head"}, False),
        ({"lora": {"r": 4, "use_dora": True}}, True),
    ],
)
def test_what_is_merged_has_the_logits_that_were_compared(
    options: dict[str, Any], tied: bool, base: Path, tmp_path: Path
) -> None:
    left = trained(tmp_path / "sft", base, name="sft", **options)
    check_merged(tmp_path, base, left, tied=tied)


def test_an_adapter_is_merged_into_the_weights_that_it_was_trained_on(base: Path, tmp_path: Path) -> None:
    head = trained(tmp_path / "sft", base, name="sft", tune="lm_head")
    left = trained(tmp_path / "dpo", base, {"train.sft": head}, name="dpo", start_from="sft")
    check_merged(tmp_path, base, left, tied=False)


def test_an_encoder_decoder_is_merged_too(tmp_path: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM

    make_architecture(tmp_path / "t5", "t5")
    left = trained(tmp_path / "sft", tmp_path / "t5", name="sft", tune="lm_head")
    run = run_of(tmp_path, tmp_path / "t5", "quantization: none, dtype: fp32", left)
    out = tmp_path / "out"
    assert cli.main(["export", str(run), "one", "--to", str(out), "--merge", "--dtype", "fp32"]) == 0
    merged = AutoModelForSeq2SeqLM.from_pretrained(out / "one")
    assert torch.equal(merged.lm_head.weight, weights.read(left)["lm_head.weight"])
    told = (out / "README.md").read_text()
    assert 'AutoModelForSeq2SeqLM.from_pretrained("one")' in told
    assert "vllm serve" not in told  # which serves no encoder-decoder


def test_a_merged_reward_model_scores_the_end_of_the_turn_as_it_was_trained_to(base: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    left = trained(tmp_path / "reward", base, name="reward_model", pairs="preferences")
    run = run_of(tmp_path, base, "quantization: none, dtype: fp32", left, one="{name: reward_model}")
    out = tmp_path / "out"
    assert cli.main(["export", str(run), "one", "--to", str(out), "--merge", "--dtype", "fp32"]) == 0
    merged = AutoModelForSequenceClassification.from_pretrained(out / "one").eval()
    tokenizer = AutoTokenizer.from_pretrained(out / "one")
    prompt, answers = prompt_of("What is 2?"), [response_of("A number."), response_of("No, and never was.")]
    rows = [scoring.conversation_ids(tokenizer, prompt.messages, each, 1024) for each in answers]
    assert {row[-1] for row in rows} == {tokenizer.eos_token_id} != {tokenizer.pad_token_id}
    width = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
    expected = scoring.SeparateReward(scoring.load_reward(left)).score([prompt, prompt], answers)
    with torch.no_grad():
        assert merged(ids).logits[:, 0].tolist() == pytest.approx(expected, abs=1e-4)
    assert f"model.config.pad_token_id = {tokenizer.pad_token_id}" in (left / "README.md").read_text()


def test_an_adapter_on_an_encoder_decoder_is_refused_with_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_architecture(tmp_path / "t5", "t5")
    left = trained(tmp_path / "sft", tmp_path / "t5", name="sft")
    run = run_of(tmp_path, tmp_path / "t5", "quantization: none, dtype: fp32", left)
    assert cli.main(["export", str(run), "one", "--to", str(tmp_path / "out")]) == 2
    assert "is of an encoder-decoder, which vLLM does not serve as an adapter; add --merge" in capsys.readouterr().err


def check_merged(top: Path, base: Path, left: Path, *, tied: bool) -> None:
    """Transformers alone, against what answers in the run."""
    from transformers import AutoModelForCausalLM

    run = run_of(top, base, "quantization: none, dtype: fp32", left)
    out = top / "out"
    assert cli.main(["export", str(run), "one", "--to", str(out), "--merge", "--dtype", "fp32"]) == 0
    merged = AutoModelForCausalLM.from_pretrained(out / "one", dtype=torch.float32)
    assert merged.config.tie_word_embeddings == tied
    assert (merged.lm_head.weight is merged.model.embed_tokens.weight) == tied
    ids = torch.tensor([[1, 7, 9, 30, 4]])
    attached = adapters.attach(
        models.load_model(ModelConfig(base=str(base), quantization="none", dtype="fp32")), {"one": left}
    )
    with torch.no_grad():
        with adapters.role(attached, "one"):
            expected = attached(ids).logits
        # Rounding of fp32, in which the adapter's part is added in another order.
        torch.testing.assert_close(merged(ids).logits, expected, rtol=1e-5, atol=1e-4)
        with adapters.role(attached, "base"):
            assert not torch.allclose(attached(ids).logits, expected, atol=1e-2)


def test_trained_weights_of_the_base_are_no_adapter(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left = trained(tmp_path / "sft", base, name="sft", tune="lm_head")
    run = run_of(tmp_path, base, "quantization: none", left)
    assert cli.main(["export", str(run), "one", "--to", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert "train.one: trained weights of the base itself, and vLLM serves adapters on the base as it came" in told
    assert "add --merge" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"use_dora": True}, "is a DoRA"),
        ({"modules_to_save": ["lm_head"]}, "has whole layers beside its LoRA"),
        ({"r": 1024}, "has rank 1024, more than 512"),
    ],
)
def test_an_adapter_that_vllm_would_refuse_is_refused_with_the_remedy(
    config: dict[str, Any], reason: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path, base, "quantization: none", **config)
    assert cli.main(["export", str(run), "one", "--to", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert f"train.one: {reason}" in told
    assert "add --merge" in told
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_is_not_touched(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path, base, "quantization: none")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    assert cli.main(["export", str(run), "one", "--to", str(tmp_path / "out")]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_step_that_is_not_there_or_not_done_is_named(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path, base, "quantization: none")
    assert cli.main(["export", str(run), "ppo", "--to", str(tmp_path / "out")]) == 2
    assert "no train step is called 'ppo'; there are: one, two, three" in capsys.readouterr().err
    assert cli.main(["export", str(run), "three", "--to", str(tmp_path / "out")]) == 2
    assert "train.three is not done" in capsys.readouterr().err


def test_a_reward_models_card_names_the_base_that_it_stands_on_and_its_licence(base: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    make_model(other, hidden=32)
    make_tokenizer(other)
    (other / "README.md").write_text("---\nlicense: gemma\n---\n")
    left = tmp_path / "left"
    make_adapter(other, left, seed=1)
    own = {"base": str(other), "quantization": "none", "dtype": "fp32"}
    (left / "reward_model.json").write_text(json.dumps({"model": own, "pad_id": 0}))
    (left / "summary.json").write_text('{"examples": 8, "updates": 2}')
    run = run_of(tmp_path, base, "quantization: nf4", left, one=f"{{name: reward_model, base: {json.dumps(own)}}}")
    assert cli.main(["export", str(run), "one", "--to", str(tmp_path / "out")]) == 0
    card, _, recipe = (tmp_path / "out" / "README.md").read_text().partition("## Recipe")
    assert f'base_model: "{other}"\nlicense: "gemma"' in card
    assert f"# LoRA adapters one on {other}\n" in card
    assert f"Base {other}, held in none while training; seed " in card
    assert f"{other} is under gemma, by its model card" in card
    assert str(base) not in card and "mit" not in card.partition("## Licence")[2]
    assert str(base) in recipe


def test_models_on_two_bases_have_both_and_both_licences_in_their_card(base: Path, tmp_path: Path) -> None:
    bases = {"one": ModelConfig(base="org/judge", quantization="none"), "two": ModelConfig(base="org/model")}
    folders = {}
    for name in bases:
        folders[f"train.{name}"] = tmp_path / name
        store.make_dirs(tmp_path / name)
        (tmp_path / name / "summary.json").write_text('{"examples": 8, "updates": 2}')
    run = run_of(tmp_path, base, "quantization: nf4")
    exported = Exported(
        names=("one", "two"), merged=True, dtype="bf16", base="", kind="CausalLM", bases=bases, serve="",
        called={"one": "one", "two": "two"},
        licences={"org/judge": "mit", "org/model": "unknown"},
    )  # fmt: skip
    told = card(load(run / "recipe.yaml"), folders, exported)
    assert 'base_model: ["org/judge", "org/model"]\ntags' in told
    assert "Base org/judge, held in none while training (one); Base org/model, held in nf4 while training (two)" in told
    assert "org/judge is under mit" in told and "The licence of org/model is unknown" in told


def test_a_licence_is_read_from_the_bases_card_and_else_unknown(base: Path, tiny: ModelConfig) -> None:
    assert licence_of(ModelConfig(base=BUILT_IN)) == "apache-2.0"
    assert licence_of(ModelConfig(base=str(base))) == "mit"
    assert licence_of(tiny) == "unknown"
