"""What differs between architectures and matters here: what follows padding, where a cache goes, which layers can be
adapted.

Everything is asked of a loaded model or its config, so that an architecture nobody thought of gets the careful answer.
What is left out: how text is sampled (`decoding.py`).
"""

import inspect
from collections.abc import Sequence
from typing import Any

MASKED_PADDING = {"mamba": "use_bias", "jamba": "mamba_proj_bias"}
"""Recurrent model types in which tokens masked on the left change nothing, and the option that makes this untrue.

Padding's hidden states are set to zero before the projection into the convolution and after it, so the state begins as
it would without padding; but with a bias on that projection the convolution sees the bias in the place of zeros."""


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
