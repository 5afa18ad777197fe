"""A train step that was killed, or whose checkpoints were damaged, ends with the bytes of one that was left alone.

Where it could not, because something that no fingerprint holds is another than before, it says what and stops; told to
go on all the same, it says so in all that it leaves.
"""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from apart import ended, started
from tiny import preferences_of
from tiny_training import MOMENTS, Once, cases, killed_at, lines, prepared, published, trained, training

from pipeline import compare, plan, store, train
from pipeline.algorithms.checkpoints import newest_sound
from pipeline.algorithms.origin import differences
from pipeline.errors import TrainingError
from pipeline.models import ModelConfig
from pipeline.recipe import load

BOTH = pytest.mark.parametrize("algorithm", ["dpo", "kto"])


@pytest.fixture(scope="module")
def once(tiny: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Once:
    return Once(tiny, tmp_path_factory)


def stopped_after(top: Path, into: Path, *, checkpoints: tuple[int, ...]) -> Path:
    """A copy of the step's directory as a kill leaves it: only these checkpoints, nothing published."""
    shutil.copytree(top, into)
    shutil.rmtree(into / "out")
    for path in (into / "work" / "checkpoints").glob("checkpoint-*"):
        if int(path.name.rpartition("-")[2]) not in checkpoints:
            shutil.rmtree(path)
    return into


# ---- killed


METHODS: dict[str, dict[str, Any]] = {"sft": {}, "reward_model": {"pairs": "preferences"}, "dpo": {}, "kto": {}}
"""What is trained, with the options that it needs here."""

HELD: dict[str, dict[str, Any]] = {
    "fp32": {"dtype": "fp32", "quantization": "none"},
    "bf16": {"dtype": "bf16", "quantization": "none"},
    "fp32 over nf4": {"dtype": "fp32", "quantization": "nf4"},
    "bf16 over nf4": {"dtype": "bf16", "quantization": "nf4"},
}
"""How the base is held."""

TUNED: dict[str, dict[str, Any]] = {
    "lora": {"lora": {}},
    "dora": {"lora": {"use_dora": True}},
    "full": {"tune": "full", "learning_rate": 1e-3},
    "layers": {"tune": "layers", "layers": ["model.layers.1", "lm_head"], "learning_rate": 1e-3},
    "lm_head": {"tune": "lm_head"},
}
"""What of it is trained."""

KILLED = [
    ("sft", "fp32", "full"),
    ("sft", "bf16 over nf4", "dora"),
    ("reward_model", "fp32 over nf4", "lora"),
    ("dpo", "fp32 over nf4", "lora"),
    ("dpo", "fp32", "dora"),
    ("kto", "bf16", "lora"),
    ("kto", "fp32", "layers"),
    ("sft", "bf16", "lm_head"),
]
"""Each method, each dtype and each kind of what is trained, but not each with each."""

OTHER_KILLED = [
    *((method, held, "lora") for method in METHODS for held in HELD if (method, held, "lora") not in KILLED),
    ("sft", "bf16", "full"),
    ("sft", "fp32", "layers"),
    ("dpo", "fp32", "full"),
    ("kto", "fp32", "full"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "held", "tuned"),
    [*KILLED, *(pytest.param(*each, marks=pytest.mark.wide) for each in OTHER_KILLED)],
)
def test_a_training_that_was_killed_leaves_the_bytes_of_one_that_was_not(
    method: str, held: str, tuned: str, tiny: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    model = tiny.model_copy(update=HELD[held])
    options = {**METHODS[method], **TUNED[tuned]}
    if method == "sft" and "lora" in options:
        # The one method with dropout, in which the state of the random generators counts.
        options["lora"] = {**options["lora"], "lora_dropout": 0.1}
    config = training(model, method, model.quantization, save_steps=3, **options)
    whole, job = (prepared(tmp_path / name, config) for name in ("whole", "killed"))
    assert ended(started(train.finish, whole)) == 0
    assert len(lines(published(whole))) == 8
    between, *saving = MOMENTS
    # A checkpoint after every third update; how far the sixth update's has come takes turns.
    for moment, update in ((between, 5), (saving[KILLED.index((method, held, tuned)) % 2], 6)):
        assert ended(started(killed_at, job, moment, update)) == -signal.SIGKILL
        folder = job.work_dir / "checkpoints"
        assert (folder / "checkpoint-3" / store.MANIFEST).exists()
        assert (folder / "checkpoint-6").exists() == (moment != between)
        assert not (folder / "checkpoint-6" / store.MANIFEST).exists()
        assert not published(job)
    assert ended(started(train.finish, job)) == 0
    assert published(job) == published(whole)


@pytest.mark.parametrize(
    ("algorithm", "quantization"), cases(("dpo", "none"), ("kto", "none"), ("dpo", "nf4"), ("kto", "nf4"), slow=1)
)
def test_a_resumed_training_leaves_the_bytes_of_an_uninterrupted_one(
    algorithm: str, quantization: str, once: Once, tiny: ModelConfig, tmp_path: Path
) -> None:
    top, expected = once(algorithm, quantization)
    step = stopped_after(top, tmp_path / "step", checkpoints=(6,))
    optimizer = step / "work" / "checkpoints" / "checkpoint-6" / "optimizer.pt"
    written = optimizer.stat().st_mtime_ns
    assert trained(step, training(tiny, algorithm, quantization)) == expected
    # It went on from checkpoint 6: that one was not written again.
    assert optimizer.stat().st_mtime_ns == written


@BOTH
def test_a_training_that_was_killed_after_its_last_checkpoint_leaves_the_same_bytes(
    algorithm: str, once: Once, tiny: ModelConfig, tmp_path: Path
) -> None:
    # Eight updates end within an epoch: going on from there, transformers would make a ninth.
    top, expected = once(algorithm)
    for left in ((6, 8), (8,)):
        step = stopped_after(top, tmp_path / str(len(left)), checkpoints=left)
        assert trained(step, training(tiny, algorithm)) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "last", "killed_after"), [("dpo", 4, (1, 2, 3)), ("kto", 8, (1, 4, 5))])
def test_epochs_that_were_killed_at_any_checkpoint_leave_the_same_bytes(
    algorithm: str,
    last: int,
    killed_after: tuple[int, ...],
    tiny: ModelConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # 10 or 20 examples, three a batch and two batches an update: no epoch ends with a whole batch or a whole update.
    options = {"num_train_epochs": 2.0, "max_steps": -1, "per_device_train_batch_size": 3, "save_steps": 1}
    config = training(tiny, algorithm, gradient_accumulation_steps=2, lr_scheduler_type="cosine", **options)
    seal = store.seal

    def keep(folder: Path, manifest: dict[str, Any]) -> None:
        seal(folder, manifest)
        shutil.copytree(folder, tmp_path / "kept" / folder.name)

    with monkeypatch.context() as patched:
        patched.setattr(store, "seal", keep)
        expected = trained(tmp_path / "whole", config, preferences_of(10))
    assert lines(expected)[-1]["step"] == last
    for number in killed_after:
        step = stopped_after(tmp_path / "whole", tmp_path / str(number), checkpoints=())
        checkpoint = f"checkpoint-{number}"
        shutil.copytree(tmp_path / "kept" / checkpoint, step / "work" / "checkpoints" / checkpoint)
        assert newest_sound(step / "work" / "checkpoints", config.algorithm.name) is not None
        assert trained(step, config, preferences_of(10)) == expected


# ---- damaged

FILES = (
    "MANIFEST.json", "README.md", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja",
    "optimizer.pt", "rng_state.pth", "scheduler.pt", "tokenizer.json", "tokenizer_config.json", "trainer_state.json",
)  # fmt: skip
"""Of a checkpoint of DPO."""


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "missing": Path.unlink,
    "truncated": cut_in_half,
    "with a byte flipped": flip_a_byte,
    "empty": lambda path: path.write_bytes(b""),
}

# Files that no checkpoint of DPO has, some under names that transformers or PEFT would read.
FOREIGN = ("adapter_model.bin", "model.safetensors", "pytorch_model.bin", "scaler.pt", "inside/notes.txt")

TABLE = [(file, damage) for file in FILES for damage in DAMAGES] + [(file, "foreign") for file in FOREIGN]
DAMAGED = pytest.mark.parametrize(("file", "damage"), TABLE)


def damaged(top: Path, into: Path, file: str, damage: str) -> Path:
    """The checkpoints 6 and 7 of a training that was killed then, the latter with one file that is not as it was."""
    folder = stopped_after(top, into, checkpoints=(6,)) / "work" / "checkpoints"
    shutil.copytree(folder / "checkpoint-6", folder / "checkpoint-7")
    path = folder / "checkpoint-7" / file
    if damage == "foreign":
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"what nobody asked for")
    else:
        DAMAGES[damage](path)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_table_has_every_file_of_a_checkpoint(once: Once) -> None:
    top, _ = once("dpo")
    assert tuple(sorted(contents(top / "work" / "checkpoints" / "checkpoint-6"))) == FILES


@DAMAGED
def test_every_damaged_file_is_noticed_and_the_checkpoint_before_is_used(
    file: str, damage: str, once: Once, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = damaged(once("dpo")[0], tmp_path / "step", file, damage)
    sound, harmed = contents(folder / "checkpoint-6"), contents(folder / "checkpoint-7")
    capfd.readouterr()
    assert newest_sound(folder, "train.dpo") == folder / "checkpoint-6"
    told = capfd.readouterr().err
    if (file, damage) == (store.MANIFEST, "missing"):
        # As a kill leaves it that came before the seal.
        assert told.startswith("train.dpo: checkpoint-7 was never finished (MANIFEST.json is missing")
        assert [path.name for path in folder.glob("*checkpoint-*")] == ["checkpoint-6"]
    else:
        assert told.startswith(f"train.dpo: checkpoint-7 is damaged ({file} ")
        assert f"it is set aside as {folder / 'damaged-checkpoint-7'}\n" in told
        assert {path.name for path in folder.glob("*checkpoint-*")} == {"checkpoint-6", "damaged-checkpoint-7"}
        assert contents(folder / "damaged-checkpoint-7") == harmed
    assert contents(folder / "checkpoint-6") == sound


@pytest.mark.slow
@DAMAGED
def test_a_training_with_a_damaged_file_leaves_the_bytes_of_one_without(
    file: str, damage: str, once: Once, tiny: ModelConfig, tmp_path: Path
) -> None:
    top, expected = once("dpo")
    folder = damaged(top, tmp_path / "step", file, damage)
    written = (folder / "checkpoint-6" / "optimizer.pt").stat().st_mtime_ns
    assert trained(tmp_path / "step", training(tiny, "dpo")) == expected
    assert (folder / "checkpoint-6" / "optimizer.pt").stat().st_mtime_ns == written, "it went on from there"


def test_where_every_checkpoint_is_damaged_training_begins_at_the_beginning(
    once: Once, tiny: ModelConfig, tmp_path: Path
) -> None:
    top, expected = once("dpo")
    folder = damaged(top, tmp_path / "step", "optimizer.pt", "missing")
    flip_a_byte(folder / "checkpoint-6" / "scheduler.pt")
    assert trained(tmp_path / "step", training(tiny, "dpo")) == expected
    assert {path.name for path in folder.glob("damaged-*")} == {"damaged-checkpoint-6", "damaged-checkpoint-7"}


def test_the_newest_checkpoint_is_by_number_and_not_by_name(once: Once, tmp_path: Path) -> None:
    top, _ = once("dpo")
    for number in (8, 10, 100):
        shutil.copytree(top / "work" / "checkpoints" / "checkpoint-6", tmp_path / f"checkpoint-{number}")
    assert newest_sound(tmp_path, "train.dpo") == tmp_path / "checkpoint-100"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-100"]


def test_without_checkpoints_training_begins_at_the_beginning(tmp_path: Path) -> None:
    assert newest_sound(tmp_path / "none", "train.dpo") is None


# ---- made otherwise


def resealed(checkpoint: Path, **changes: Any) -> None:
    """Make the checkpoint one that was written elsewhere: by other versions, on another device."""
    manifest = store.read_manifest(checkpoint)
    assert manifest is not None
    sealed = {name: manifest[name] for name in ("step", "of", "inexact")}
    store.seal(checkpoint, {**sealed, "made_by": {**manifest["made_by"], **changes}})


ELSEWHERE: dict[str, tuple[dict[str, Any], str]] = {
    "versions": ({"versions": {"torch": "2.9.0"}}, r"versions\.torch: 2\.9\.0 -> 2\.\d+"),
    "processes": ({"world_size": 2}, "world_size: 2 -> 1"),
    "device": ({"device": "1 x NVIDIA H100"}, "device: 1 x NVIDIA H100 -> cpu, "),
    "threads": ({"threads": 64}, r"threads: 64 -> \d+"),
    "dtype": ({"dtype": "torch.bfloat16"}, r"dtype: torch\.bfloat16 -> torch\.float32"),
}
"""What no fingerprint holds, so that it can be another when the same step goes on."""


@pytest.mark.parametrize(("changes", "told"), ELSEWHERE.values(), ids=ELSEWHERE)
def test_a_checkpoint_that_was_made_elsewhere_is_refused(
    changes: dict[str, Any], told: str, once: Once, tiny: ModelConfig, tmp_path: Path
) -> None:
    step = stopped_after(once("dpo")[0], tmp_path / "step", checkpoints=(6,))
    resealed(step / "work" / "checkpoints" / "checkpoint-6", **changes)
    before = contents(step / "work")
    with pytest.raises(
        TrainingError, match=rf"^train\.test: .*checkpoint-6: it was made otherwise \(.*{told}"
    ) as error:
        trained(step, training(tiny, "dpo"))
    assert "delete" in str(error.value) and "allow_inexact_resume=true" in str(error.value)
    assert contents(step / "work") == before, "nothing is lost by asking"


OTHER: dict[str, tuple[dict[str, Any], str]] = {
    "seed": ({"seed": 4}, "seed: 3 -> 4"),
    "learning rate": ({"learning_rate": 2e-2}, r"algorithm\.learning_rate: 0\.01 -> 0\.02"),
    "data": ({"preferences": 11}, r"data\.label: \w+ -> \w+"),
    "a model that there is not, so none was loaded": (
        {"base": "nowhere"},
        r"model\.base: \S+ -> nowhere; model\.content: \w+ -> absent",
    ),
}
"""What a fingerprint holds: only a directory that was copied by hand, or code without the engine, comes here."""


@pytest.mark.parametrize(("changes", "told"), OTHER.values(), ids=OTHER)
def test_a_checkpoint_of_another_experiment_is_refused(
    changes: dict[str, Any], told: str, once: Once, tiny: ModelConfig, tmp_path: Path
) -> None:
    changes = dict(changes)
    step = stopped_after(once("dpo")[0], tmp_path / "step", checkpoints=(6,))
    preferences = preferences_of(changes.pop("preferences", 12))
    seed = changes.pop("seed", 3)
    model = tiny.model_copy(update={"base": changes.pop("base", tiny.base)})
    config = training(model, "dpo", **changes).model_copy(update={"seed": seed})
    with pytest.raises(TrainingError, match=rf"made otherwise \({told}\), so going on"):
        trained(step, config, preferences)


RECIPE = """\
model: {base: MODEL, quantization: none}
generate: {prompts: {files: train.jsonl}, sampler: local}
judge: length
train: {dpo: }
compare: {prompts: {files: heldout.jsonl}, judges: [rules]}
"""


@pytest.mark.parametrize("change", ["train.dpo.learning_rate=2e-3", "seed=2", "judge.prefer=shorter", "DATA"])
def test_a_step_with_another_learning_rate_seed_or_data_never_meets_the_checkpoints_of_the_first(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("train", "heldout"):
        Path(f"{name}.jsonl").write_text('{"id": "one", "prompt": "Hello?"}\n')
    Path("recipe.yaml").write_text(RECIPE)

    def staging(*overrides: str) -> Path:
        run = plan.open_run(load("recipe.yaml", overrides), tmp_path / "run")
        (state,) = [state for state in run.states() if state.step.name == "train.dpo"]
        return run._staging(state)

    first = staging()
    assert staging("allow_inexact_resume=true") == first, "that is no other experiment"
    if change == "DATA":
        Path("train.jsonl").write_text('{"id": "one", "prompt": "Goodbye?"}\n')
    assert staging(*([] if change == "DATA" else [change])) != first


def test_asked_to_a_step_goes_on_from_a_checkpoint_that_was_made_elsewhere_and_the_report_says_so(
    once: Once, tiny: ModelConfig, tmp_path: Path
) -> None:
    step = stopped_after(once("dpo")[0], tmp_path / "step", checkpoints=(6,))
    checkpoint = step / "work" / "checkpoints" / "checkpoint-6"
    resealed(checkpoint, world_size=2)
    config = training(tiny, "dpo").model_copy(update={"allow_inexact_resume": True})
    files = trained(step, config)
    how = "it went on from update 6 with another world_size: 2 -> 1"
    assert json.loads(files["summary.json"])["inexact_resume"] == [how]
    # A later checkpoint says so too, for one that goes on from there with nothing changed any more.
    later = store.read_manifest(step / "work" / "checkpoints" / "checkpoint-8")
    assert later is not None
    assert (later["inexact"], later["made_by"]["world_size"]) == ([how], 1)
    assert list(compare._inexact({"dpo": step / "out"})) == [f"dpo is not what an uninterrupted training gives: {how}."]


def test_what_was_inexact_stays_so_however_exactly_it_goes_on(once: Once, tiny: ModelConfig, tmp_path: Path) -> None:
    step = stopped_after(once("dpo")[0], tmp_path / "step", checkpoints=(6,))
    checkpoint = step / "work" / "checkpoints" / "checkpoint-6"
    manifest = store.read_manifest(checkpoint)
    assert manifest is not None
    how = "it went on from update 2 with another threads: 8 -> 2"
    sealed = {name: manifest[name] for name in ("step", "of", "made_by")}
    store.seal(checkpoint, {**sealed, "inexact": [how]})
    assert json.loads(trained(step, training(tiny, "dpo"))["summary.json"])["inexact_resume"] == [how]


def test_an_exact_training_says_nothing_of_the_kind_even_if_it_may_be_inexact(
    once: Once, tiny: ModelConfig, tmp_path: Path
) -> None:
    top, expected = once("dpo")
    step = stopped_after(top, tmp_path / "step", checkpoints=(6,))
    config = training(tiny, "dpo").model_copy(update={"allow_inexact_resume": True})
    assert trained(step, config) == expected
    assert list(compare._inexact({"dpo": step / "out"})) == []


def test_differences_are_told_by_their_path_and_in_its_order() -> None:
    before = {"b": {"y": 1, "x": [1, 2]}, "a": None, "c": 1}
    now = {"b": {"y": 2, "x": [1, 2]}, "a": None, "d": {"z": True}}
    assert differences(before, before) == []
    assert differences(before, now) == ["b.y: 1 -> 2", "c: 1 -> absent", "d.z: absent -> True"]
