"""A model that writes several answers at once, token by token, from which answers leave as they end.

    decoding, logits = begin(model, conversations)
    decoding.select(rows)                  # repeat rows, or drop them
    logits = decoding.step(tokens)

What is left out: which token is taken (`pipeline.sampling`).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.architectures import bare, cache_argument, is_encoder_decoder

if TYPE_CHECKING:
    import torch


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
        ids_BT, mask_BT = padded(prefixes, model.device, left=True)
        made = cls(model, mask_BT)
        return made, made._forward(ids_BT)

    def select(self, rows_B: "torch.Tensor") -> None:
        # Not `batch_select_indices`, which caches of recurrent layers do not have.
        self.cache.reorder_cache(rows_B)
        self.mask_BT = self.mask_BT[rows_B]

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


def padded(rows: Sequence[Sequence[int]], device: Any, *, left: bool = False) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Rows of ids as (B, T), and the mask of what is no padding, (B, T), both int64."""
    import torch

    width = max(map(len, rows))
    pairs = [([0] * (width - len(row)), list(row)) for row in rows]
    ids = [pad + row if left else row + pad for pad, row in pairs]
    mask = [pad + [1] * len(row) if left else [1] * len(row) + pad for pad, row in pairs]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
