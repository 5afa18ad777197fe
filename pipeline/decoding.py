"""A model that writes several answers at once, token by token, from which answers leave as they end.

    decoding, logits = begin(model, conversations)
    decoding.select(rows)                  # repeat rows, or drop them
    logits = decoding.step(tokens)

What all conversations begin with is read once, and those of unlike lengths in passes of their own, where that costs
less than to pad them and read them together. What is left out: which token is taken (`pipeline.sampling`).
"""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from pipeline.architectures import bare, cache_argument, is_encoder_decoder

if TYPE_CHECKING:
    import torch

PASS, PASS_ELSEWHERE = {"cpu": 8}, 512
"""What a forward pass costs whatever is read in it, in tokens: the weights come from memory and the layers are called.
A GPU multiplies so much faster than it reads that it is some hundreds."""


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
        from pipeline.growing_cache import grows

        ids_BT, mask_BT = padded(prefixes, model.device, left=True)
        made = cls(model, mask_BT)
        passes = Passes.of(prefixes, model.device)
        if passes is None or not grows(made.cache):
            return made, made._forward(ids_BT)
        made._read(prefixes, passes)
        # The last tokens together, so that the states and logits from which all go on are those of one pass.
        return made, made.step(ids_BT[:, -1])

    def _read(self, prefixes: Sequence[Sequence[int]], passes: "Passes") -> None:
        """All but the last token of each: the opening once, and each part behind it."""
        import torch

        from pipeline.growing_cache import join

        device, begun = self.model.device, len(passes.opening)
        ids_1T, mask_1T = padded([passes.opening], device)
        opened = type(self)(self.model, mask_1T)
        if begun:
            opened._forward(ids_1T)
        caches = []
        for rows in passes.parts:
            ids_BT, mask_BT = padded([prefixes[row][begun:-1] for row in rows], device, left=True)
            part = opened.copied(torch.zeros(len(rows), dtype=torch.long, device=device))
            part.mask_BT = torch.cat([part.mask_BT, mask_BT], dim=1)
            part._forward(ids_BT)
            caches.append(part.cache)
        join(self.cache, opened.cache, caches, passes.parts, len(prefixes))
        # Padding stands between the opening and the rest.
        rest_BT = padded([prefix[begun:-1] for prefix in prefixes], device, left=True)[1]
        self.mask_BT = torch.cat([mask_1T.expand(len(prefixes), -1), rest_BT], dim=1)

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


class Passes(NamedTuple):
    """How conversations are read in several passes, all but the last token of each."""

    opening: Sequence[int]
    """Token ids with which all of them begin, such as a system message."""
    parts: Sequence[Sequence[int]]
    """The places of those that are more than that and a last token."""

    @classmethod
    def of(cls, prefixes: Sequence[Sequence[int]], device: "torch.device") -> "Passes | None":
        """None: padded and read together they cost no more."""
        fixed = PASS.get(device.type, PASS_ELSEWHERE)
        begun = min(len(shared(prefixes)), min(map(len, prefixes)) - 1)
        if begun * (len(prefixes) - 1) <= fixed:
            begun = 0
        rest = {place: length for place, prefix in enumerate(prefixes) if (length := len(prefix) - 1 - begun)}
        places = [*rest]
        parts = [[places[at] for at in part] for part in by_length([*rest.values()], device)]
        tokens = begun + sum(rest[part[-1]] * len(part) for part in parts) + len(prefixes)
        number = (begun > 0) + len(parts) + 1
        if tokens + number * fixed >= max(map(len, prefixes)) * len(prefixes) + fixed:
            return None
        return cls(prefixes[0][:begun], parts)


def shared(rows: Sequence[Sequence[int]]) -> Sequence[int]:
    """What all rows begin with."""
    # Of rows in order the first and the last are the most unlike.
    first, last = min(map(list, rows)), max(map(list, rows))
    at = next((at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), None)
    return first if at is None else first[:at]


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
    fixed = PASS.get(device.type, PASS_ELSEWHERE)
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
    # Rows without any token would be taken for floating point.
    return tuple(torch.tensor(each, dtype=torch.long, device=device) for each in (ids, mask))  # type: ignore[return-value]
