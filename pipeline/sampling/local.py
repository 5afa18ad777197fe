"""Samples from a model in this process: one prefill a prompt, a shared cache, finished answers leave the batch.

Every answer draws from its own row of uniform numbers, fixed before decoding starts. So two checkpoints that sample
the same batch use the same random numbers (which makes their comparison sharper), and it does not matter when other
answers finish. What is left out: beams, speculative decoding, continuous batching (a vLLM server does those), and
batches of several adapters' answers (so does one): by rounding, an answer would depend on who else was asked, and could
not be kept for the next comparison. On a processor they are slower too, but where prompts are few: make bench-compare.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pipeline.adapters import attach, role
from pipeline.architectures import alike
from pipeline.decoding import begin
from pipeline.models import ModelConfig, chat_ids, load_model, load_tokenizer, token_logprobs
from pipeline.reading import Read
from pipeline.records import Response
from pipeline.sampling.base import Batch, Sampler, SamplerConfig

if TYPE_CHECKING:
    import torch


class Config(SamplerConfig):
    """How answers are sampled."""

    name: Literal["local"] = "local"
    temperature: float = Field(default=1.0, ge=0)
    """Logits are divided by it; 1 samples the policy itself, 0 takes the likeliest token."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus: only the likeliest tokens that together have this probability (Holtzman et al. 2020); 1 keeps all."""
    top_k: int = Field(default=0, ge=0)
    """Only this many likeliest tokens; 0 keeps all."""
    max_new_tokens: int = Field(default=256, ge=1)
    """An answer that has not ended by then is cut and marked as not finished."""
    batch_size: int = Field(default=32, ge=1)
    """Answers decoded at once."""

    @property
    def plain(self) -> bool:
        return (self.temperature, self.top_p, self.top_k) == (1.0, 1.0, 0)

    def build(self, model: ModelConfig, adapters: dict[str, Path], *, reference: bool) -> "LocalSampler":
        """The sampler, with the base loaded once and every adapter on it.

        Args:
            reference: also compute each answer's log-probability under the base (for the KL to it).
        """
        return LocalSampler(self, model, adapters, reference=reference)


class LocalSampler(Sampler):
    """See `pipeline.sampling.base.Sampler`."""

    def __init__(self, config: Config, model: ModelConfig, adapters: dict[str, Path], *, reference: bool) -> None:
        self.config = config
        self.reference = reference
        self.tokenizer = load_tokenizer(model)
        # PEFT makes modules of these names, whose names cannot have a dot.
        self.roles = {name: f"policy{place}" for place, name in enumerate(adapters)}
        folders = {self.roles[name]: folder for name, folder in adapters.items()}
        self.model = attach(load_model(model), folders)
        self.read: Read | None = None

    def sample(self, batch: Batch, source: str) -> list[Response]:
        """Answers to a batch, in the order of its prompts."""
        prefixes = [chat_ids(self.tokenizer, prompt.messages) for prompt in batch.prompts]
        eos = end_tokens(self.model, self.tokenizer)
        with role(self.model, self.roles.get(source, source)):
            rows = decode(self.model, prefixes, self.config, samples=batch.samples, seed=batch.seed, eos=eos)
        under_base = self._under_base(source, prefixes, rows, batch.samples)
        responses = []
        for number, (tokens, logprob) in enumerate(rows):
            finished = tokens[-1] in eos
            responses.append(
                Response(
                    text=self.tokenizer.decode(tokens[:-1] if finished else tokens, skip_special_tokens=True),
                    source=source,
                    index=number % batch.samples,
                    n_tokens=len(tokens),
                    finished=finished,
                    logprob=logprob,
                    ref_logprob=under_base[number],
                )
            )
        return responses

    def _under_base(
        self, source: str, prefixes: list[list[int]], rows: list[tuple[list[int], float]], samples: int
    ) -> list[float | None]:
        if not self.reference:
            return [None] * len(rows)
        if source == "base":
            return [logprob for _, logprob in rows]
        places = [number // samples for number in range(len(rows))]
        with role(self.model, "base"):
            # The checkpoints answer one batch after the other, and the base reads its prompts once.
            if self.read is None or self.read.prefixes != prefixes:
                self.read = Read(self.model, prefixes)
            logprobs = self.read.logprobs(places, [tokens for tokens, _ in rows])
        return [round(float(each.double().sum()), 6) for each in logprobs]


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends an answer: those of the model's generation config, and the tokenizer's."""
    configured = model.generation_config.eos_token_id
    listed = configured if isinstance(configured, list) else [configured]
    return frozenset(int(token) for token in [*listed, tokenizer.eos_token_id] if token is not None)


def decode(
    model: Any, prefixes: Sequence[Sequence[int]], config: Config, *, samples: int, seed: int, eos: frozenset[int]
) -> list[tuple[list[int], float]]:
    """Samples `samples` answers to each of several conversations.

    Args:
        prefixes: token ids of the conversations.
        seed: of the uniform numbers, one row an answer.
        eos: an answer ends with the first of these that it samples.

    Returns:
        For each answer, conversation by conversation: its token ids, and the sum of their log-probabilities (nats)
        under the model itself, at temperature 1 and without top-p and top-k.
    """
    uniform_RT = uniforms(len(prefixes) * samples, config.max_new_tokens, seed)
    rows = sample_tokens(
        model,
        prefixes,
        uniform_RT,
        samples=samples,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        eos=eos,
    )
    # Rounded, so that the number survives its way through JSON unchanged and reads well.
    return [(tokens, round(sum(logprob for (logprob,) in told), 6)) for tokens, told in rows]


def uniforms(rows: int, tokens: int, seed: int) -> "torch.Tensor":
    """The random numbers of so many answers, in [0, 1), one row an answer."""
    import torch

    # Drawn on the processor whatever the device, so that a seed means the same everywhere.
    return torch.rand(rows, tokens, generator=torch.Generator().manual_seed(seed))


def sample_tokens(
    model: Any,
    prefixes: Sequence[Sequence[int]],
    uniform_RT: "torch.Tensor",
    *,
    samples: int,
    temperature: float,
    top_p: float = 1.0,
    top_k: int = 0,
    eos: frozenset[int],
    tell: "Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None" = None,
) -> list[tuple[list[int], list[list[float]]]]:
    """Samples `samples` answers of at most T tokens to each of several conversations.

    Args:
        prefixes: token ids of the conversations.
        uniform_RT: see `uniforms`; one row an answer, conversation by conversation.
        eos: an answer ends with the first of these that it samples.
        tell: what is to be kept of each token, (B, K), from the logits (B, V) that it is drawn from and the token (B,).
            None: its log-probability (nats) at temperature 1 without top-p and top-k.

    Returns:
        For each answer its token ids, and the K numbers of each.
    """
    import torch

    rows, longest = uniform_RT.shape
    found: list[tuple[list[int], list[list[float]]]] = [([], []) for _ in range(rows)]
    ends = torch.tensor(sorted(eos), device=model.device)

    for places in alike(model, prefixes):
        alive_B = torch.tensor([place * samples + sample for place in places for sample in range(samples)])
        with torch.inference_mode():
            # 1. Prefill: each conversation once, then its state for each of its answers.
            decoding, logits_PV = begin(model, [prefixes[place] for place in places])
            each_B = torch.arange(len(places), device=model.device).repeat_interleave(samples)
            decoding.select(each_B)
            logits_BV = logits_PV[each_B]

            for position in range(longest):
                # 2. One token for every answer that has not ended.
                uniform_B = uniform_RT[alive_B, position].to(logits_BV.device)
                token_B = draw(logits_BV, uniform_B, temperature, top_p, top_k)
                told_BK = (tell or _likely)(logits_BV, token_B)
                for row, token, told in zip(alive_B.tolist(), token_B.tolist(), told_BK.tolist(), strict=True):
                    found[row][0].append(token)
                    found[row][1].append(told)
                # 3. Those that ended leave the batch.
                keep_B = ~torch.isin(token_B, ends)
                if position + 1 == longest or not bool(keep_B.any()):
                    break
                if not bool(keep_B.all()):
                    kept_B = keep_B.nonzero()[:, 0]
                    decoding.select(kept_B)
                    token_B, alive_B = token_B[kept_B], alive_B[kept_B.cpu()]
                # 4. The next logits.
                logits_BV = decoding.step(token_B)
    return found


def _likely(logits_BV: "torch.Tensor", token_B: "torch.Tensor") -> "torch.Tensor":
    return token_logprobs(logits_BV[:, None], token_B[:, None])


def draw(
    logits_BV: "torch.Tensor", uniform_B: "torch.Tensor", temperature: float, top_p: float, top_k: int
) -> "torch.Tensor":
    """One token a row by inverting the cumulative distribution at `uniform_B`, which is in [0, 1). Shape (B,)."""
    import torch

    if temperature == 0:
        return logits_BV.argmax(-1)
    logits_BV = truncate(logits_BV / temperature, top_p, top_k)
    # Of weights and not of probabilities: the draw is scaled to their sum, and torch.softmax is slow on a processor.
    cdf_BV = (logits_BV - logits_BV.amax(-1, keepdim=True)).exp_().cumsum(-1)
    target_B1 = (uniform_B * cdf_BV[:, -1]).unsqueeze(-1)
    # right=True finds the first token whose cumulative probability exceeds the target, so one of probability 0 never.
    return torch.searchsorted(cdf_BV, target_B1, right=True).squeeze(-1).clamp(max=logits_BV.shape[-1] - 1)


def truncate(logits_BV: "torch.Tensor", top_p: float, top_k: int) -> "torch.Tensor":
    """Logits with those outside of the top k and of the nucleus set to -inf. The likeliest token always stays."""
    import torch

    if top_k and top_k < logits_BV.shape[-1]:
        smallest_B1 = logits_BV.topk(top_k, dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < smallest_B1, -torch.inf)
    if top_p < 1:
        sorted_BV, order_BV = logits_BV.sort(dim=-1, descending=True)
        probability_BV = torch.softmax(sorted_BV, dim=-1)
        # A token is out if those before it already have the whole nucleus.
        out_BV = probability_BV.cumsum(-1) - probability_BV >= top_p
        logits_BV = logits_BV.masked_fill(out_BV.gather(-1, order_BV.argsort(-1)), -torch.inf)
    return logits_BV
