"""A model small enough to load in milliseconds, with everything a real one has, and records to feed it.

Two layers of a Llama with random weights; a token is a byte; conversations are written as ChatML. The weights are
large, so that its distributions are far from flat and a mistake of one position shows.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.records import Message, Pair, Preference, Prompt, Response, Verdict
from pipeline.worker import Job

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""Their ids are 0, 1 and 2; the bytes follow."""

END = 2
CONTEXT = 512


def make_tokenizer(folder: Path, template: str | None = CHATML, *, ends: bool = False) -> None:
    """A tokenizer of bytes and three special tokens.

    Args:
        ends: it puts the end token after every text, as that of an encoder-decoder does.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    if ends:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {SPECIAL[END]}", special_tokens=[(SPECIAL[END], END)]
        )
    whole = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=SPECIAL[END], pad_token=SPECIAL[0], bos_token=SPECIAL[1]
    )
    whole.chat_template = template
    whole.save_pretrained(folder)


def make_model(folder: Path, hidden: int = 32, seed: int = 0, *, tied: bool = False) -> None:
    """A Llama of two layers with random weights, as safetensors; `tied`: the output layer is the embeddings."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=300,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=END,
        pad_token_id=0,
        tie_word_embeddings=tied,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)


DECODERS = ("llama", "mistral", "qwen3", "gpt2", "mixtral", "mamba", "jamba")
ENCODER_DECODERS = ("t5", "bart")
ENCODERS = ("bert", "camembert")


def make_architecture(folder: Path, kind: str, **options: Any) -> None:
    """A random model of two layers of this kind, with its tokenizer.

    Args:
        kind: one of `DECODERS`, `ENCODER_DECODERS` and `ENCODERS`. An encoder is what predicts masked words leaves: it
            has no pooler. Its tokenizer puts two texts between special tokens.
        options: of its configuration.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

    config = _configuration(kind, options)
    auto: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    if kind in ENCODERS:
        auto = AutoModelForMaskedLM
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = auto.from_config(config)
        if kind in ("mamba", "jamba"):
            # Drawn much smaller than the rest, the state would hardly be felt.
            for name, parameter in model.named_parameters():
                if "x_proj" in name or "conv1d.weight" in name:
                    torch.nn.init.normal_(parameter, std=0.6)
    model.save_pretrained(folder)
    make_tokenizer(folder, CHATML if kind in DECODERS else None, ends=config.is_encoder_decoder)
    if kind in ENCODERS:
        _reads_pairs(folder)


def _reads_pairs(folder: Path) -> None:
    """Make a tokenizer put two texts together as [CLS] one [SEP] other [SEP]."""
    from tokenizers.processors import BertProcessing
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = BertProcessing((SPECIAL[END], END), (SPECIAL[1], 1))
    tokenizer.save_pretrained(folder)


def _configuration(kind: str, options: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    shared = {"vocab_size": 300, "bos_token_id": 1, "eos_token_id": END, "pad_token_id": 0, "initializer_range": 0.3}
    llama = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": CONTEXT, "tie_word_embeddings": False,
    }  # fmt: skip
    encoder = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    moe = {"num_local_experts": 4, "num_experts_per_tok": 2}
    own: dict[str, dict[str, Any]] = {
        "llama": llama,
        # A window that is shorter than the tests' conversations.
        "mistral": {**llama, "sliding_window": 12},
        "qwen3": {**llama, "head_dim": 8},
        "gpt2": {"n_positions": CONTEXT, "n_embd": 32, "n_layer": 2, "n_head": 4},
        "mixtral": {**llama, **moe},
        "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "time_step_rank": 4},
        "jamba": {
            **llama, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
            "num_experts": 4, "num_experts_per_tok": 2, "mamba_d_state": 4, "mamba_dt_rank": 4,
        },
        "t5": {
            "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0,
            "initializer_factor": 0.4,
        },
        "bart": {
            "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
            "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "init_std": 0.3,
            "max_position_embeddings": CONTEXT, "decoder_start_token_id": END, "forced_eos_token_id": END,
        },
        "bert": {**encoder, "max_position_embeddings": 96},
        "camembert": {**encoder, "max_position_embeddings": 97},
    }  # fmt: skip
    return AutoConfig.for_model(kind, **{**shared, **own[kind], **options})


def absolute_model() -> Any:
    """A random GPT-2 of two layers: unlike a Llama it sees the number of a position and not only distances."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=300, n_positions=128, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GPT2LMHeadModel(config).eval()


def make_adapter(base: Path, folder: Path, seed: int) -> None:
    """A LoRA adapter with random weights on both sides, so that it changes what the model says."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(base),
            LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False),
        )
    model.save_pretrained(str(folder))


def prompt_of(text: str, name: str | None = None, system: str | None = None) -> Prompt:
    """A prompt of one user turn; its id is its text unless a name is given."""
    before = [Message(role="system", content=system)] if system else []
    return Prompt(id=name or text, messages=(*before, Message(role="user", content=text)))


def response_of(text: str, source: str = "base", index: int = 0, finished: bool | None = True) -> Response:
    """An answer; ended by itself unless told otherwise."""
    return Response(text=text, source=source, index=index, finished=finished)


def preference_of(prompt: Prompt, chosen: Response, rejected: Response) -> Preference:
    """A sure preference."""
    return Preference(
        pair_id=Pair.of(prompt, chosen, rejected).id, prompt=prompt, chosen=chosen, rejected=rejected, confidence=0.9
    )


def preferences_of(count: int, finished: bool | None = True) -> list[Preference]:
    """As many preferences, each with a prompt of its own and answers of different lengths."""
    return [
        preference_of(
            prompt_of(f"What is {number} plus {number}?"),
            response_of(f"It is {2 * number}." + " Sure." * (number % 3), finished=finished),
            response_of("No idea" + " at all" * (number % 4), index=1, finished=finished),
        )
        for number in range(count)
    ]


def said(pair: Pair, p_a: float | None = None, abstained: Any = None) -> Verdict:
    """A verdict on a pair."""
    return Verdict(pair_id=pair.id, judge="j", fingerprint="f", p_a=p_a, abstained=abstained)


def job_of(
    top: Path, config: Any, *, step: str = "step", inputs: dict[str, Path] | None = None, rank: int = 0, world: int = 1
) -> Job:
    """What the engine would hand to a step's function; its directories are in `top`."""
    for name in ("out", "work"):
        (top / name).mkdir(parents=True, exist_ok=True)
    return Job(
        step=step,
        identity=config.identity(),
        options={"config": config.model_dump(mode="json")},
        inputs=inputs or {},
        files=(),
        out=top / "out",
        work_dir=top / "work",
        cache=top / "cache",
        rank=rank,
        world=world,
    )


@contextmanager
def inputs_read(model: Any, told: Callable[[Any], Any] = lambda ids: ids.numel()) -> Iterator[list[Any]]:
    """What `told` says of the token ids of every forward pass inside; how many they are, padding included."""
    read: list[Any] = []
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda _, given: read.append(told(given[0])))
    try:
        yield read
    finally:
        hook.remove()


def full_logprobs(model: Any, ids: Sequence[int]) -> Any:
    """log p(id at T + 1 | ids up to T) for every T, by one forward pass without cache, in NumPy's float64."""
    import numpy as np
    import torch

    with torch.no_grad():
        logits = model(torch.tensor([list(ids)]), use_cache=False).logits[0].double().numpy()
    shifted = logits - logits.max(axis=-1, keepdims=True)
    logprobs = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return logprobs[np.arange(len(ids) - 1), list(ids)[1:]]


def make_reward_model(folder: Path, kind: str = "decoder", labels: int = 1) -> Path:
    """A random classifier with its tokenizer: a Llama whose padding is its end of turn, or a BERT that reads pairs."""
    import torch
    from tokenizers.processors import BertProcessing
    from transformers import (
        AutoTokenizer,
        BertConfig,
        BertForSequenceClassification,
        LlamaConfig,
        LlamaForSequenceClassification,
    )

    sizes: dict[str, Any] = {
        "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "initializer_range": 0.3, "num_labels": labels,
    }  # fmt: skip
    decoder = kind == "decoder"
    make_tokenizer(folder, CHATML if decoder else None)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if decoder:
            tokenizer.pad_token = tokenizer.eos_token
            whole = LlamaConfig(**sizes, max_position_embeddings=CONTEXT, pad_token_id=END, num_key_value_heads=2)
            LlamaForSequenceClassification(whole).save_pretrained(folder)
        else:
            tokenizer.backend_tokenizer.post_processor = BertProcessing((SPECIAL[1], 1), (SPECIAL[0], 0))
            tokenizer.model_max_length = 128
            BertForSequenceClassification(BertConfig(**sizes, max_position_embeddings=128)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if not decoder:
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        settings["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
