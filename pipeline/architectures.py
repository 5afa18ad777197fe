"""What differs between architectures and matters here: what follows padding, where a cache goes, which layers can be
adapted.

Everything is asked of a loaded model or its config, so that an architecture nobody thought of gets the careful answer.
What is left out: how text is sampled (`decoding.py`).
"""

import inspect
from collections.abc import Sequence
from typing import Any

from pipeline.errors import ModelError

MASKED_PADDING = {"mamba": "use_bias", "jamba": "mamba_proj_bias"}
"""Recurrent model types in which tokens masked on the left change nothing, and the option that makes this untrue.

Padding's hidden states are set to zero before the projection into the convolution and after it, so the state begins as
it would without padding; but with a bias on that projection the convolution sees the bias in the place of zeros."""

READ_PAST = {
    "mamba": ("x_proj", "dt_proj", "out_proj"),
    "falcon_mamba": ("x_proj", "dt_proj", "out_proj"),
    "jamba": ("dt_proj",),
}
"""Layers by model type whose weight is multiplied with by somebody else than the layer: by the fused kernels of
`mamba_ssm`, or by transformers' own scan. An adapter on them would be left out in silence, and a quantised weight read
as if it were none."""


def bare(model: Any) -> Any:
    """The model of transformers inside a PeftModel, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def is_encoder_decoder(model: Any) -> bool:
    """T5, BART and their like: an encoder reads the conversation, a decoder writes the answer."""
    return bool(model.config.is_encoder_decoder)


def is_recurrent(model: Any) -> bool:
    """Mamba, Jamba and their like: at least one layer keeps a state of fixed size instead of all keys and values.

    Such a cache goes on with one token at a time: given several, the layers begin anew and say nothing.
    """
    return bool(getattr(bare(model), "_is_stateful", False))


def padding_leaks(model: Any) -> bool:
    """Whether tokens that are masked on the left change what comes after them."""
    if not is_recurrent(model):
        return False
    bias = MASKED_PADDING.get(model.config.model_type)
    return bias is None or bool(getattr(model.config, bias))


def alike(model: Any, prefixes: Sequence[Sequence[int]]) -> list[list[int]]:
    """The places of conversations that may share a batch that is padded on the left.

    All of them, or those of one length where padding would leak.
    """
    if not padding_leaks(model):
        return [list(range(len(prefixes)))]
    groups: dict[int, list[int]] = {}
    for place, prefix in enumerate(prefixes):
        groups.setdefault(len(prefix), []).append(place)
    return list(groups.values())


def cache_argument(model: Any) -> str:
    """What the forward pass calls its cache. One by another name is ignored in silence."""
    known = inspect.signature(type(bare(model)).forward).parameters
    return "past_key_values" if "past_key_values" in known else "cache_params"


def read_past(config: Any) -> tuple[str, ...]:
    """Names of the layers that can be neither adapted nor quantised."""
    return READ_PAST.get(config.model_type, ())


def left_out(model: Any, target_modules: str | Sequence[str]) -> list[str] | None:
    """What PEFT must leave out of `target_modules`, if anything.

    Raises:
        ModelError: a layer is named that cannot be adapted, or that the model does not have.
    """
    names = read_past(model.config)
    if isinstance(target_modules, str):
        return list(names) or None
    kind = model.config.model_type
    present = {name.rpartition(".")[2] for name, module in model.named_modules() if _has_matrix(module)}
    there_are = f"there are {', '.join(sorted(present - set(names)))}; all-linear takes those that work"
    for target in target_modules:
        last = target.rpartition(".")[2]
        if last in names or last == "conv1d":
            raise ModelError(
                f"lora.target_modules: in {kind} the weight of {target!r} is read past the layer, so an adapter on it "
                f"would do nothing; {there_are}"
            )
    if not any(target.rpartition(".")[2] in present for target in target_modules):
        raise ModelError(f"lora.target_modules: {kind} has none of {', '.join(target_modules)}; {there_are}")
    return None


def check_dora(model: Any, target_modules: str | Sequence[str]) -> None:
    """A DoRA needs layers, and a mixture may hold all experts of a layer as one tensor.

    Raises:
        ModelError: some of what is adapted is no layer.
    """
    if any(each.ndim == 3 for each in _experts(model)) and isinstance(target_modules, str):
        raise ModelError(
            f"lora.use_dora: {model.config.model_type} holds its experts as one tensor, which a DoRA cannot be on; "
            "name other layers as lora.target_modules, such as [q_proj, k_proj, v_proj, o_proj], or no DoRA"
        )


def _has_matrix(module: Any) -> bool:
    return getattr(module, "weight", None) is not None and type(module).__name__.startswith(("Linear", "Conv1D"))


def is_mixture(model: Any) -> bool:
    """Whether a router chooses experts: by rounding alone it may choose others, whose numbers are not close."""
    return bool(_experts(model))


def experts_in_full(model: Any) -> float:
    """Share of a quantised model's bytes that is experts, which are left in the dtype that is computed in.

    transformers holds all experts of a layer as one tensor, and bitsandbytes quantises linear layers.
    """
    experts = sum(each.nbytes for each in _experts(model))
    return float(experts / sum(each.nbytes for each in model.parameters()))


def _experts(model: Any) -> list[Any]:
    """The parameters of a mixture's experts."""
    return [each for name, each in model.named_parameters() if ".experts." in name]


def silence_dropout(model: Any) -> None:
    """Compute every training pass as an evaluation does, in place: losses that compare two passes need it."""
    for module in model.modules():
        if type(module).__name__ == "Dropout":
            module.p = 0.0
        # Some layers hand a number to torch.nn.functional.dropout instead, or leave whole layers out.
        for name in ("dropout", "attention_dropout", "activation_dropout", "layerdrop"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
