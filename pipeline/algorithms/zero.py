"""DeepSpeed (Rajbhandari et al. 2020, arXiv:1910.02054) behind the trainers of transformers: its options, the state
that accelerate needs where there is no GPU, and weights that ZeRO-3 has divided, whole for a moment.

What is left out: the frozen base as it is loaded. Every process reads all of it and then keeps its part.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from pipeline.launch import LaunchConfig

if TYPE_CHECKING:
    import torch


def options(config: LaunchConfig) -> dict[str, Any]:
    """DeepSpeed's JSON; `auto` is what transformers fills in. The same as recipes/deepspeed/zero<stage>.json."""
    zero: dict[str, Any] = {"stage": config.zero}
    if config.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    if config.zero == 3:
        if config.offload:
            zero["offload_param"] = {"device": "cpu"}
        # Adapters are small: below this many numbers a weight stays whole everywhere, and no time goes into fetching.
        zero["stage3_param_persistence_threshold"] = 10_000
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    return {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
        "zero_optimization": zero,
        # AdamW is torch's own; DeepSpeed's would be compiled on the spot.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def arguments(config: LaunchConfig, device: "torch.device") -> dict[str, Any]:
    """What TrainingArguments need for processes that train together; nothing for one alone."""
    if config.world == 1 and not config.zero:
        return {}
    found: dict[str, Any] = {"ddp_timeout": int(config.timeout_s) or 1}
    if device.type == "cpu":
        found["ddp_backend"] = "gloo"
    if not config.zero:
        # The losses use every trained parameter. Looking for unused ones would cost a pass over the graph.
        return {**found, "ddp_find_unused_parameters": False}
    if device.type == "cpu":
        _prepare_processor(config.timeout_s)
        found["accelerator_config"] = {"use_configured_state": True}
    return {**found, "deepspeed": options(config)}


def _prepare_processor(timeout_s: float) -> None:
    """Tell accelerate that this is DeepSpeed, over gloo.

    By itself it rules DeepSpeed out on a processor: with `cpu` it makes plain DDP of it, without it finds no backend.
    """
    os.environ["DS_ACCELERATOR"] = "cpu"
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType
    from deepspeed.ops import __compatible_ops__

    # It would be compiled on the spot, for inference alone.
    __compatible_ops__["deepspeed_shm_comm"] = False
    AcceleratorState._reset_state(reset_partial_state=True)
    state = PartialState(cpu=True, backend="gloo", timeout=timedelta(seconds=timeout_s))
    state.distributed_type = DistributedType.DEEPSPEED


@contextlib.contextmanager
def whole(parameters: Iterable[Any]) -> Iterator[None]:
    """Inside, these parameters have their values everywhere, also where ZeRO-3 has divided them. Not to be changed."""
    divided = [each for each in parameters if hasattr(each, "ds_id")]
    if not divided:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(divided):
        yield
