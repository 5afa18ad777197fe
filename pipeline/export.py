"""What a run trained, as folders that others load without this project: adapters for vLLM and PEFT, or merged models.

    FOLDER/README.md      the model card: what it is, how it was made and judged, under which licence, how to serve it
    FOLDER/<step>/        a PEFT folder, or with `merge` a whole model with its tokenizer
    FOLDER/base/          for adapters on the built-in model, which is on no hub: the weights that they were trained on

An adapter that was trained on a quantised base is merged into the weights that this base computes with, the
dequantised ones, and not into the original: those are what its gradients were taken at and what answered when it was
compared. They are added in fp32 and rounded once. How far the merged model's logits are from those before merging is
measured, and in the card. A policy that trained weights of the base itself has no other form than a whole model.

What is left out: uploading. Nothing here is a pickle, and no token is ever read.
"""

import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from pipeline import store, weights
from pipeline.adapters import adapt
from pipeline.algorithms.scoring import FACTS
from pipeline.architectures import bare, is_encoder_decoder
from pipeline.errors import DataError, ModelError
from pipeline.export_card import Exported, card
from pipeline.models import (
    ADAPTER,
    ADAPTER_TENSORS,
    BUILT_IN,
    ModelConfig,
    dtype_of,
    has_encoder,
    load_model,
    load_scorer,
    plain,
    tokenizer_of,
)
from pipeline.recipe import Recipe
from pipeline.records import canonical
from pipeline.rounds import made_by

if TYPE_CHECKING:
    import torch

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as --max-lora-rank."""

ADAPTER_FILES = (ADAPTER, ADAPTER_TENSORS)

Dtype = Literal["bf16", "fp16", "fp32"]

SENTENCE = "The merged model has to say what the policy said before, whatever comes next."
"""What both read when their logits are compared."""


@dataclass(frozen=True)
class Trained:
    """A train step of a run, done."""

    name: str
    folder: Path
    base: ModelConfig
    scores: bool
    """It is a reward model."""
    pad_id: int | None = None
    """Of a reward model: what its rows are padded with. Its score is that of the last token that is another."""


def export(
    recipe: Recipe,
    done: Mapping[str, Path],
    called: Mapping[str, str],
    target: Path,
    *,
    merge: bool,
    dtype: Dtype,
) -> str:
    """Write the folder; see the top of this file. Returns the command that serves it.

    Args:
        done: the published folder of every step of the run that is done, as a round sees them.
        called: train step, of later rounds by the policy (`round2_dpo`) -> what the comparison calls its policy.

    Raises:
        DataError: a step is none, or not done; the target is not empty.
        ModelError: an adapter cannot be served as one.
    """
    trained = [_trained(recipe, done, *each) for each in called.items()]
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"{target}: not an empty folder; name another with --to, nothing is overwritten")
    if not merge:
        _check_servable(trained)
    store.make_dirs(target.absolute().parent)
    staging = Path(tempfile.mkdtemp(dir=target.absolute().parent, prefix=".exporting-"))
    try:
        gaps = {each.name: _merged(each, staging / each.name, dtype) for each in trained} if merge else {}
        base = "" if merge else _adapters(trained, staging, dtype)
        exported = Exported(
            names=tuple(each.name for each in trained),
            merged=merge,
            dtype=dtype,
            base=base,
            kind=_kind(trained[0]),
            bases={each.name: each.base for each in trained},
            licences={each.base.base: licence_of(each.base) for each in trained},
            called=called,
            serve=_command(trained, base, merge=merge),
            gaps=gaps,
        )
        store.write_text(staging / "README.md", card(recipe, done, exported))
        store.publish(staging, target.absolute(), {"exported": list(exported.names), "merged": merge})
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return exported.serve


def _kind(each: Trained) -> str:
    if each.scores:
        return "SequenceClassification"
    return "Seq2SeqLM" if has_encoder(each.base) else "CausalLM"


def licence_of(config: ModelConfig) -> str:
    """The licence that the base's model card names, or `unknown`."""
    if config.base == BUILT_IN:
        return "apache-2.0"
    text = _card_of(config)
    front = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    try:
        told = yaml.safe_load(front[1]) if front else None
    except yaml.YAMLError:
        told = None
    found = told.get("license") if isinstance(told, dict) else None
    return found if isinstance(found, str) and found.strip() else "unknown"


def _card_of(config: ModelConfig) -> str:
    from huggingface_hub import try_to_load_from_cache

    local = Path(config.base)
    try:
        kept = local / "README.md" if local.is_dir() else try_to_load_from_cache(config.base, "README.md")
        return Path(kept).read_text(encoding="utf-8") if isinstance(kept, str | Path) else ""
    except (OSError, ValueError):
        return ""


def _trained(recipe: Recipe, done: Mapping[str, Path], name: str, policy: str) -> Trained:
    made = made_by(recipe.train, name)
    if made is None:
        raise DataError(f"no train step is called {name!r}; there are: {', '.join(recipe.train)}")
    folder = done.get(f"train.{name}")
    if folder is None:
        raise DataError(f"train.{policy} is not done; run the recipe first")
    problems = store.verify(folder, hashes=True)
    if problems:
        raise DataError(f"{folder}: {problems[0]}; run the recipe again")
    scores = recipe.train[made[1]].MAKES == "reward"
    if not scores:
        return Trained(name, folder, recipe.model, scores)
    facts = store.read_json(folder / FACTS)
    return Trained(name, folder, ModelConfig.model_validate(facts["model"]), scores, facts["pad_id"])


# ---- adapters


def _check_servable(trained: Sequence[Trained]) -> None:
    """What vLLM's loader refuses (`vllm/lora/peft_helper.py`) is refused here, and so are several bases."""
    for each in trained:
        if (each.folder / weights.FILE).exists():
            raise ModelError(
                f"train.{each.name}: trained weights of the base itself, and vLLM serves adapters on the base as it "
                "came; add --merge"
            )
        config = _adapter_config(each)
        reasons = {
            "is of an encoder-decoder": has_encoder(each.base) and not each.scores,
            f"has whole layers beside its LoRA ({config.get('modules_to_save')})": config.get("modules_to_save"),
            "is a DoRA": config.get("use_dora"),
            "trains biases": config.get("bias", "none") != "none",
            f"has rank {_rank(config)}, more than {RANKS[-1]}": _rank(config) > RANKS[-1],
        }
        found = [reason for reason, is_so in reasons.items() if is_so]
        if found:
            raise ModelError(f"train.{each.name}: {found[0]}, which vLLM does not serve as an adapter; add --merge")
    bases = {canonical(each.base.model_dump(mode="json")): each.base for each in trained}
    if len(bases) > 1:
        raise ModelError("these steps are on different bases, which one server does not have; export each by itself")


def _adapter_config(each: Trained) -> dict[str, Any]:
    found: dict[str, Any] = store.read_json(each.folder / ADAPTER_FILES[0])
    return found


def _rank(config: Mapping[str, Any]) -> int:
    return max([int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values())])


def _adapters(trained: Sequence[Trained], staging: Path, dtype: Dtype) -> str:
    """Write one PEFT folder each. Returns the base that they name."""
    model = trained[0].base
    base = model.base
    if model.base == BUILT_IN:
        base = "base"
        _save(_dense(model), model, staging / base, dtype)
    elif Path(model.base).is_dir():
        base = str(Path(model.base).absolute())
    for each in trained:
        folder = staging / each.name
        folder.mkdir()
        shutil.copyfile(each.folder / ADAPTER_FILES[1], folder / ADAPTER_FILES[1])
        config = {**_adapter_config(each), "base_model_name_or_path": base, "revision": model.revision}
        store.write_json(folder / ADAPTER_FILES[0], config)
        _save_tokenizer(each.base, folder)
    return base


# ---- merged


def _merged(each: Trained, folder: Path, dtype: Dtype) -> float:
    """Write the whole model. Returns the largest difference that rounding and merging made to a logit."""
    model = _dense(each.base, scores=each.scores).float()
    weights.load(model, each.folder)
    adapted = (each.folder / ADAPTER).exists()
    if adapted:
        model = adapt(model, each.folder).eval()
    if each.pad_id is not None:
        bare(model).config.get_text_config().pad_token_id = each.pad_id
    ids = _ids(each)
    before = _logits(model, ids)
    whole = _save(model.merge_and_unload() if adapted else model, each.base, folder, dtype, each.pad_id)
    return float((_logits(whole, ids) - before).abs().max())


def _dense(config: ModelConfig, *, scores: bool = False) -> Any:
    """The base with the weights that it computes with, none of them quantised any more."""
    model: Any = load_scorer(config, seed=0) if scores else load_model(config)
    if getattr(model, "is_quantized", False):
        model = model.dequantize()
    return plain(model)


def _save(model: Any, config: ModelConfig, folder: Path, dtype: Dtype, pad_id: int | None = None) -> Any:
    model = model.to(dtype_of(ModelConfig(dtype=dtype)))
    model.config.architectures = [type(model).__name__]
    model.config._name_or_path = config.base
    model.config.pad_token_id = model.config.get_text_config().pad_token_id
    model.save_pretrained(folder)
    _save_tokenizer(config, folder, pad_id)
    return model


def _save_tokenizer(config: ModelConfig, folder: Path, pad_id: int | None = None) -> None:
    """As it came with the base, chat template included; but for the padding, if that is another."""
    tokenizer = tokenizer_of(config)
    if pad_id is not None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_id)
    tokenizer.save_pretrained(folder)


def _ids(each: Trained) -> "torch.Tensor":
    """A sentence; of what scores answers, one that has ended."""
    import torch

    tokenizer = tokenizer_of(each.base)
    ids = list(tokenizer(SENTENCE)["input_ids"])
    if each.scores and tokenizer.eos_token_id is not None and ids[-1] != tokenizer.eos_token_id:
        ids.append(tokenizer.eos_token_id)
    return torch.tensor([ids])


def _logits(model: Any, ids_1T: "torch.Tensor") -> "torch.Tensor":
    import torch

    with torch.inference_mode():
        ids_1T = ids_1T.to(model.device)
        # A decoder of its own answers with the same sentence.
        more = {"decoder_input_ids": ids_1T} if is_encoder_decoder(model) else {}
        found: torch.Tensor = model(ids_1T, **more).logits.float().cpu()
    return found


def _served(each: Trained) -> str:
    if has_encoder(each.base) and not each.scores:
        # vLLM serves none; transformers loads it.
        return (
            f"""python -c "import transformers; transformers.AutoModelForSeq2SeqLM.from_pretrained('{each.name}')\""""
        )
    return f"vllm serve {each.name}"


def _command(trained: Sequence[Trained], base: str, *, merge: bool) -> str:
    """What serves the folder, said inside it."""
    if merge:
        policies = [each for each in trained if not each.scores] or list(trained)
        return "\n".join(_served(each) for each in policies)
    rank = next(rank for rank in RANKS if rank >= max(_rank(_adapter_config(each)) for each in trained))
    modules = " ".join(f"{each.name}={each.name}" for each in trained)
    return f"vllm serve {base} --enable-lora --max-lora-rank {rank} --max-loras {len(trained)} --lora-modules {modules}"
