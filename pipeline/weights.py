"""Trained weights of the base itself: of a full fine-tuning, of chosen layers, or of the output layer alone.

    weights.safetensors    the tensors that were trained and no others, by their names in the base

They are to a policy's folder what `adapter_model.safetensors` is to that of a LoRA, and a folder may have both: then
the adapter was trained on the base with these weights. Several policies share one base in memory, which holds the
weights of whoever acts. What is left out: training them (`pipeline.algorithms.policy`).
"""

import contextlib
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ModelError

if TYPE_CHECKING:
    import torch

FILE = "weights.safetensors"


def choose(model: Any, names: Sequence[str]) -> None:
    """Freeze everything but what `names` name, in place.

    Args:
        model: an unquantised base.
        names: of parameters or of modules, with `*` and `?` as in file names. None at all: everything is trained.

    Raises:
        ModelError: a name is of nothing in this model.
    """
    head = head_name(model)
    if head and any(named(head, name) for name in names):
        untie(model)
    found = dict(model.named_parameters())
    for name in names:
        if not any(named(each, name) for each in found):
            raise ModelError(f"layers: {model.config.model_type} has nothing called {name!r}; {_there_are(found)}")
    for each, parameter in found.items():
        parameter.requires_grad_(not names or any(named(each, name) for name in names))


def named(parameter: str, name: str) -> bool:
    """Whether `name`, with `*` and `?` as in file names, is the parameter or a module that it is in."""
    parts = parameter.split(".")
    return any(fnmatchcase(".".join(parts[:length]), name) for length in range(1, len(parts) + 1))


def _there_are(parameters: Sequence[str] | dict[str, Any]) -> str:
    modules = list(dict.fromkeys(name.rpartition(".")[0] for name in parameters))
    return f"there are {', '.join(modules[:3])}, ..., {', '.join(modules[-2:])}"


def head_name(model: Any) -> str:
    """What the output layer's weight is called; empty if there is no such layer."""
    head = model.get_output_embeddings()
    return next((f"{name}.weight" for name, module in model.named_modules() if module is head), "")


def untie(model: Any) -> None:
    """Give an output layer that shares its weight with the input embeddings a copy of its own, in place."""
    import torch

    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head.weight is not embeddings.weight:
        return
    name = head_name(model)
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    # Else transformers would tie them again when it saves or loads a checkpoint.
    for owner in ("_tied_weights_keys", "all_tied_weights_keys"):
        tied = getattr(model, owner, None) or {}
        setattr(model, owner, {key: value for key, value in tied.items() if key != name})
    # That of an encoder-decoder also ties the embeddings of its two sides.
    if not model.config.is_encoder_decoder:
        model.config.get_text_config().tie_word_embeddings = False
        model.config.tie_word_embeddings = False


def redraw_head(model: Any, seed: int) -> None:
    """Draw the output layer anew, N(0, initializer_range) as when the model was made, in place."""
    import torch

    untie(model)
    weight = model.get_output_embeddings().weight
    generator = torch.Generator().manual_seed(seed)
    deviation = float(getattr(model.config.get_text_config(), "initializer_range", 0.02))
    with torch.no_grad():
        # On the processor whatever the device, so that one seed draws one head.
        weight.copy_(torch.normal(0.0, deviation, weight.shape, generator=generator))


def save(model: Any, folder: Path, dtype: "torch.dtype") -> None:
    """Write the tensors that are trained, in the dtype that the base computes in."""
    from safetensors.torch import save_file

    trained = {
        name: parameter.detach().to("cpu", dtype).contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    save_file(trained, folder / FILE, metadata={"format": "pt"})


def read(folder: Path) -> dict[str, "torch.Tensor"]:
    """The tensors of a folder; empty if it has none.

    Raises:
        ModelError: they cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / FILE).exists():
        return {}
    try:
        return load_file(folder / FILE)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder / FILE}: cannot be read: {error}") from error


def load(model: Any, folder: Path) -> None:
    """Put the tensors of a folder into the base, in place, frozen.

    Raises:
        ModelError: they cannot be read, or are not of this base.
    """
    for parameter, tensor in _matched(model, folder):
        parameter.data.copy_(tensor)


def _matched(model: Any, folder: Path) -> list[tuple[Any, "torch.Tensor"]]:
    found = read(folder)
    if head_name(model) in found:
        untie(model)
    parameters = dict(model.named_parameters())
    for name, tensor in found.items():
        own = parameters.get(name)
        if own is None or own.shape != tensor.shape:
            raise ModelError(
                f"{folder / FILE}: {name} {tuple(tensor.shape)} is not in {model.config.model_type} "
                f"{tuple(own.shape) if own is not None else ''}; it was trained on another base"
            )
    return [(parameters[name], tensor) for name, tensor in found.items()]


class Exchange:
    """The weights of several policies, of which the base holds those of one at a time."""

    def __init__(self) -> None:
        self.held: dict[str, list[tuple[Any, torch.Tensor]]] = {}

    def add(self, model: Any, name: str, folder: Path) -> None:
        """Read a policy's weights, if it has any. The base has no adapter yet."""
        found = _matched(model, folder)
        if found:
            self.held[name] = [(own, tensor.to(own.device, own.dtype)) for own, tensor in found]

    @contextlib.contextmanager
    def acting(self, name: str) -> Iterator[None]:
        """Inside, the base has the weights of this policy; of one that has none, its own."""
        held = self.held.get(name, [])
        before = [parameter.data for parameter, _ in held]
        for parameter, tensor in held:
            parameter.data = tensor
        try:
            yield
        finally:
            for (parameter, _), tensor in zip(held, before, strict=True):
                parameter.data = tensor
