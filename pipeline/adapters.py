"""Saved adapters on a base in memory: each put there whole, several on one base, and who of them acts.

PEFT warns of matrices that a file lacks, or says nothing, and the policy is partly the base then; and tensors of the
base itself that a file carries along it copies into the base, for everybody on it. Both are refused here. What is left
out: whether a file is one of this base, told before anything loads (`pipeline.fitting`); training.
"""

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline import weights
from pipeline.architectures import bare
from pipeline.errors import ModelError
from pipeline.models import ADAPTER, ADAPTER_TENSORS

OF_ADAPTERS = ("lora_", "trainable_tokens_")
"""What is in the names of tensors that are an adapter's own."""


def adapt(model: Any, folder: Path, name: str = "default", *, trainable: bool = False) -> Any:
    """Put a saved adapter on a base, or beside those that are on it. Returns the PeftModel.

    Raises:
        ModelError: it cannot be read, does not fit, lacks a matrix, or carries tensors of the base itself.
    """
    from peft import PeftConfig, PeftModel
    from safetensors import SafetensorError

    try:
        config = PeftConfig.from_pretrained(str(folder))
        strays = stray(tensors_of(folder / ADAPTER_TENSORS), getattr(config, "modules_to_save", None) or ())
        if strays:
            raise ModelError(f"{folder}: {carried(strays)}")
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*Found missing adapter keys")
            if not isinstance(model, PeftModel):
                return PeftModel.from_pretrained(model, folder, adapter_name=name, is_trainable=trainable)
            found = model.load_adapter(folder, adapter_name=name, is_trainable=trainable)
            if found.missing_keys:
                raise UserWarning(f"Found missing adapter keys while loading the checkpoint: {found.missing_keys}")
    except UserWarning as warning:
        raise ModelError(
            f"{folder}: the adapter {name!r} is not whole, and where it lacks matrices it would be the base: "
            f"{_shortened(str(warning))}; copy it again"
        ) from warning
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{folder}: the adapter {name!r} cannot be loaded: {error}") from error
    return model


def tensors_of(file: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape; the numbers are not read.

    Raises:
        OSError: there is no such file.
        safetensors.SafetensorError: it is damaged.
    """
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118


def stray(names: Iterable[str], whole_modules: Sequence[str]) -> list[str]:
    """Names of tensors that are neither an adapter's nor of modules that it has a copy of its own of.

    Args:
        whole_modules: PEFT's `modules_to_save`.
    """
    return [
        name
        for name in names
        if not any(part in name for part in OF_ADAPTERS)
        and not any(f".{module}." in f".{name}" for module in whole_modules)
    ]


def carried(strays: Sequence[str]) -> str:
    """What is wrong with an adapter that has such tensors, and what to do."""
    more = f" and {len(strays) - 1} more" if len(strays) > 1 else ""
    return (
        f"beside the adapter it has tensors of the base itself ({strays[0]}{more}), which would change the base for "
        "all policies on it; save it without them (PEFT: save_embedding_layers=False), or merged, if they were trained"
    )


def _shortened(text: str, most: int = 300) -> str:
    return text if len(text) <= most else text[:most] + " ..."


def attach(model: Any, policies: dict[str, Path]) -> Any:
    """The base with saved policies, by role name; `role` chooses which acts. No policies: the base as is.

    Raises:
        ModelError: an adapter or a policy's weights cannot be loaded.
    """
    exchange = weights.Exchange()
    for name, folder in policies.items():
        # Before there are adapters, which rename the layers that they are in.
        exchange.add(model, name, folder)
    bare(model).exchange = exchange
    for name, folder in policies.items():
        if (folder / ADAPTER).exists() or name not in exchange.held:
            model = adapt(model, folder, name)
    return model.eval()


@contextlib.contextmanager
def role(model: Any, name: str) -> Iterator[None]:
    """Inside, the model is `name`: an attached policy, or `base` without any.

    Raises:
        ModelError: no policy of that name is attached.
    """
    held = getattr(bare(model), "exchange", None) or weights.Exchange()
    adapters = getattr(model, "peft_config", {})
    if name != "base" and name not in (*adapters, *held.held):
        raise ModelError(f"no policy {name!r} is attached to the model; name one that was, or base")
    with held.acting(name):
        if name in adapters:
            model.set_adapter(name)
            yield
        elif adapters:
            with model.disable_adapter():
                yield
        else:
            yield
