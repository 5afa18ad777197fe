"""A model that writes several answers at once, token by token, from which answers leave as they end.

    decoding, logits = begin(model, conversations)
    decoding.select(rows)                  # repeat rows, or drop them
    logits = decoding.step(tokens)

Conversations of one length are read together, and those of another in a pass of their own where that costs less than
the padding. What is left out: which token is taken (`pipeline.sampling`).
"""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.architectures import bare, cache_argument, is_encoder_decoder

if TYPE_CHECKING:
    import torch

PASS = {"cpu": 8}
"""What a forward pass costs whatever is read in it, in tokens: the weights come from memory and the layers are called.
On a GPU, which multiplies so much faster than it reads, some hundreds."""


class Decoding(Protocol):
    """The state of answers that are being written, a row each."""

    def select(self, rows_B: "torch.Tensor") -> None:
        """These rows in this order; a row may be there several times, or no more."""
        ...

    def step(self, token_B: "torch.Tensor") -> "torch.Tensor":
        """The next logits, (B, V) in float32, after these tokens."""
        ...


def begin(model: Any, prefixes: Sequence[Sequence[int]]) -> tuple[Decoding, "torch.Tensor"]:
    """Reads the conversations. Returns the state, a row each, and the logits of the first tokens, (B, V) in float32.

    Args:
        prefixes: token ids of conversations that are `alike`.
    """
    if is_encoder_decoder(model):
        return _EncoderDecoder.begin(model, prefixes)
    return _Decoder.begin(model, prefixes)


class _Decoder:
    """A causal model; the conversations are padded on the left."""

    def __init__(self, model: Any, mask_BT: "torch.Tensor") -> None:
        from pipeline.growing_cache import growing_cache

        self.model, self.mask_BT = model, mask_BT
        self.cache: Any = growing_cache(model.config)
        self.argument = cache_argument(model)

    @classmethod
    def begin(cls, model: Any, prefixes: Sequence[Sequence[int]]) -> tuple["_Decoder", "torch.Tensor"]:
        from pipeline.growing_cache import grows, join

        ids_BT, mask_BT = padded(prefixes, model.device, left=True)
        made = cls(model, mask_BT)
        parts = by_length([len(prefix) for prefix in prefixes], model.device)
        if len(parts) == 1 or not grows(made.cache):
            return made, made._forward(ids_BT)
        read = []
        for rows in parts:
            width = len(prefixes[rows[-1]])
            part = cls(model, mask_BT[rows, -width:])
            read.append((part._forward(ids_BT[rows, -width:]), part.cache))
        join(made.cache, [cache for _, cache in read], parts)
        logits_BV = read[0][0].new_empty(len(prefixes), read[0][0].shape[-1])
        for rows, (logits, _) in zip(parts, read, strict=True):
            logits_BV[rows] = logits
        return made, logits_BV

    def select(self, rows_B: "torch.Tensor") -> None:
        # Not `batch_select_indices`, which caches of recurrent layers do not have.
        self.cache.reorder_cache(rows_B)
        self.mask_BT = self.mask_BT[rows_B]

    def copied(self, rows_B: "torch.Tensor") -> "_Decoder":
        """These rows of it as another, so that it can be gone on from again."""
        other = copy.copy(self)
        other.cache = copy.deepcopy(self.cache)
        other.select(rows_B)
        return other

    def step(self, token_B: "torch.Tensor") -> "torch.Tensor":
        import torch

        self.mask_BT = torch.cat([self.mask_BT, self.mask_BT.new_ones(len(self.mask_BT), 1)], dim=1)
        return self._forward(token_B[:, None])

    def _forward(self, ids_BT: "torch.Tensor") -> "torch.Tensor":
        width = ids_BT.shape[1]
        positions_BT = positions(self.mask_BT)[:, -width:]
        # A model without any attention masks the tokens that it is given and no earlier ones.
        mask_BT = self.mask_BT if self.argument == "past_key_values" else self.mask_BT[:, -width:]
        output = self.model(
            ids_BT,
            attention_mask=mask_BT,
            position_ids=positions_BT,
            use_cache=True,
            logits_to_keep=1,
            **{self.argument: self.cache},
        )
        logits_BV: torch.Tensor = output.logits[:, -1].float()
        return logits_BV


class _EncoderDecoder:
    """An encoder has read the conversations, padded on the right; the decoder's rows begin with its start token."""

    def __init__(self, model: Any, ids_BS: "torch.Tensor", mask_BS: "torch.Tensor") -> None:
        from transformers import DynamicCache, EncoderDecoderCache

        self.model, self.mask_BS = model, mask_BS
        self.read_BSH = bare(model).get_encoder()(input_ids=ids_BS, attention_mask=mask_BS).last_hidden_state
        self.cache: Any = EncoderDecoderCache(DynamicCache(), DynamicCache())

    @classmethod
    def begin(cls, model: Any, prefixes: Sequence[Sequence[int]]) -> tuple["_EncoderDecoder", "torch.Tensor"]:
        made = cls(model, *padded(prefixes, model.device))
        start_B = made.mask_BS.new_full((len(prefixes),), start_token(model))
        return made, made.step(start_B)

    def select(self, rows_B: "torch.Tensor") -> None:
        self.cache.reorder_cache(rows_B)
        self.read_BSH, self.mask_BS = self.read_BSH[rows_B], self.mask_BS[rows_B]

    def step(self, token_B: "torch.Tensor") -> "torch.Tensor":
        output = self.model(
            encoder_outputs=(self.read_BSH,),
            attention_mask=self.mask_BS,
            decoder_input_ids=token_B[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        logits_BV: torch.Tensor = output.logits[:, -1].float()
        return logits_BV


def start_token(model: Any) -> int:
    """What an encoder-decoder's answers are written after."""
    # In several processes the model is wrapped by what sums up its gradients.
    return int(getattr(model, "module", model).config.decoder_start_token_id)


def positions(mask_BT: "torch.Tensor") -> "torch.Tensor":
    """The position of each token, (B, T): the number of real tokens before it, whatever the padding on the left."""
    return (mask_BT.cumsum(-1) - 1).clamp(min=0)


def by_length(lengths: Sequence[int], device: "torch.device", most: int | None = None) -> list[list[int]]:
    """The places of rows of such lengths in parts that are padded and computed by themselves.

    The longest rows come first, whose memory is the first to be too much. Of all ways to divide them it is the one with
    the fewest tokens, padding counted and each part as `PASS` more.

    Args:
        most: rows of a part. None: any number.
    """
    order = sorted(range(len(lengths)), key=lambda place: (lengths[place], place))
    fixed = PASS.get(device.type, 512)
    # cost[n]: of the n shortest rows, the last part of which begins at start[n].
    cost, start = [0], [0]
    for end in range(1, len(order) + 1):
        width = lengths[order[end - 1]]
        first = 0 if most is None else max(0, end - most)
        found = min((cost[begin] + width * (end - begin) + fixed, begin) for begin in range(first, end))
        cost.append(found[0])
        start.append(found[1])
    parts, end = [], len(order)
    while end:
        parts.append(order[start[end] : end])
        end = start[end]
    return parts


def padded(rows: Sequence[Sequence[int]], device: Any, *, left: bool = False) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Rows of ids as (B, T), and the mask of what is no padding, (B, T), both int64."""
    import torch

    width = max(map(len, rows))
    pairs = [([0] * (width - len(row)), list(row)) for row in rows]
    ids = [pad + row if left else row + pad for pad, row in pairs]
    mask = [pad + [1] * len(row) if left else [1] * len(row) + pad for pad, row in pairs]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
