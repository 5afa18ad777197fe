"""Whether what was trained elsewhere goes on the base of a comparison, told before anything loads.

    of whom         PEFT wrote the base's name; prefloop's manifest has the whole model, quantisation included
    of what shape   each matrix of the adapter against the layer that it names, on torch's meta device

Who names an option of the base himself (`model.base=...`) answers for it, and is held to the shapes alone. What is left
out: loading it (`pipeline.models`).
"""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from pipeline import adapters, store, weights
from pipeline.contents import content_of
from pipeline.errors import DataError, ModelError
from pipeline.models import ADAPTER_TENSORS, ModelConfig, home, path_of, skeleton
from pipeline.sources import Made, read_adapter

PREFIX = "base_model.model."
"""What PEFT puts before the names of the base's modules."""

TASKS = (None, "CAUSAL_LM", "SEQ_2_SEQ_LM")

DRAWS = (True, False, "gaussian", "eva", "orthogonal")
"""Values of PEFT's `init_lora_weights` that leave the base as it is. The others (PiSSA, OLoRA, CorDA ...) change it as
the adapter is loaded, for everybody else on it too."""


def check(made: Made, model: ModelConfig, named: Collection[str]) -> None:
    """Look whether a checkpoint is one of this base.

    Args:
        named: options of `model` that the user named himself.

    Raises:
        DataError: it is not; the message says what does not fit.
    """
    assert made.folder is not None
    manifest = store.read_manifest(made.folder) or {}
    told = manifest.get("identity", {}).get("model")
    if told is not None:
        _check_model(made, told, model, named)
    elif made.kind == "adapter":
        _check_name(made, read_adapter(made.folder), model, named)
    if made.kind == "adapter":
        _check_kind(made, read_adapter(made.folder))
        _check_own(made, read_adapter(made.folder))
    if told is None or "base" in named:
        _check_shapes(made, model)


def _check_model(made: Made, told: dict[str, Any], model: ModelConfig, named: Collection[str]) -> None:
    own = model.identity()
    same_content = told.get("content") is not None and told.get("content") == own.get("content")
    for option in ("base", "revision", "quantization", "double_quantization", "dtype"):
        if told.get(option) != own[option] and option not in named and not (option == "base" and same_content):
            what = f"it was trained with model.{option}: {told.get(option)}, and here it is {own[option]}"
            raise DataError(f"{made.source}: {what}; {_remedy(option, told.get(option))}")
    if "content" in told and "content" in own and not same_content and "base" not in named:
        raise DataError(
            f"{made.source}: it was trained on another content of {told['base']}; {_remedy('base', own['base'])}"
        )


def _remedy(option: str, value: object) -> str:
    return f"say model.{option}={value} to compare all with that, or leave it out"


def _check_name(made: Made, told: dict[str, Any], model: ModelConfig, named: Collection[str]) -> None:
    written = told.get("base_model_name_or_path")
    if "base" in named or (isinstance(written, str) and is_same_base(written, model)):
        return
    raise DataError(
        f"{made.source}: an adapter of {written or 'a base that it does not name'}, and the base here is {model.base}; "
        f"leave it out, or, if the two are the same weights, say so with model.base={model.base}"
    )


def is_same_base(written: str, model: ModelConfig) -> bool:
    """Whether the base that PEFT wrote down is this one, by its name or by what is in its folder."""
    if written in (model.base, path_of(model)):
        return True
    theirs, own = Path(written), Path(path_of(model))
    if not (theirs.is_dir() and own.is_dir()):
        return False
    return content_of(theirs, home() / "hashes") == content_of(own, home() / "hashes")


def _check_kind(made: Made, told: dict[str, Any]) -> None:
    if told.get("peft_type") != "LORA":
        raise DataError(f"{made.source}: an adapter of the kind {told.get('peft_type')}; LoRA and DoRA can be compared")
    if told.get("task_type") not in TASKS:
        raise DataError(f"{made.source}: its task is {told['task_type']}, which answers no prompts; name a policy")
    if told.get("init_lora_weights", True) not in DRAWS:
        raise DataError(
            f"{made.source}: init_lora_weights is {told['init_lora_weights']!r}, which changes the base that all "
            "share; convert it to a plain LoRA (PEFT: save_pretrained with path_initial_model_for_weight_conversion)"
        )


def _check_own(made: Made, told: dict[str, Any]) -> None:
    assert made.folder is not None
    strays = adapters.stray(_tensors_of(made.folder / ADAPTER_TENSORS), told.get("modules_to_save") or ())
    if strays:
        raise DataError(f"{made.source}: {adapters.carried(strays)}")


def _check_shapes(made: Made, model: ModelConfig) -> None:
    assert made.folder is not None
    try:
        shapes = {name: tuple(each.shape) for name, each in skeleton(model).named_parameters()}
    except ModelError as error:
        raise DataError(f"{made.source}: cannot be held against the base: {error}") from error
    files = (made.folder / ADAPTER_TENSORS, made.folder / weights.FILE)
    tensors = {name: shape for file in files if file.is_file() for name, shape in _tensors_of(file).items()}
    wrong = list(_misfits(tensors, shapes))
    if wrong:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise DataError(f"{made.source}: does not fit {model.base}: {wrong[0]}{more}; it was trained on another base")


def _tensors_of(file: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import SafetensorError

    try:
        return adapters.tensors_of(file)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{file}: cannot be read ({error}); copy it again") from error


def _misfits(tensors: dict[str, tuple[int, ...]], base: dict[str, tuple[int, ...]]) -> Iterator[str]:
    """What of an adapter or of trained weights has no place in the base, a phrase each."""
    for name, shape in tensors.items():
        plain = name.removeprefix(PREFIX)
        module, _, matrix = plain.rpartition(".lora_A.weight")
        if module and not matrix:
            out = tensors.get(f"{PREFIX}{module}.lora_B.weight", (0, 0))[0]
            own = base.get(f"{module}.weight")
            if own is None:
                yield f"there is no {module}"
            # A Conv1D has its two sides the other way round.
            elif len(own) == 2 and own not in ((out, shape[1]), (shape[1], out)):
                yield f"{module} is {own[0]} x {own[1]}, and its LoRA is for {out} x {shape[1]}"
        elif "lora_" not in plain and plain in base and base[plain] != shape:
            yield f"{plain} is {' x '.join(map(str, base[plain]))}, and not {' x '.join(map(str, shape))}"
        elif "lora_" not in plain and plain not in base and not plain.endswith("lm_head.weight"):
            yield f"there is no {plain}"
