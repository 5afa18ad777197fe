"""Conversations that a model reads once, to score answers to them as often as it is asked.

Five checkpoints answer the same prompts, and the base says of each answer how likely it would have been: the prompts
are the larger part of that text, and the same five times. What is left out: models whose state goes on with one token
at a time, or that read in an encoder, which read the conversation with every answer (`pipeline.models`).
"""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.architectures import is_encoder_decoder, is_recurrent
from pipeline.decoding import begin, by_length, padded, positions
from pipeline.models import padded_logprobs, token_logprobs

if TYPE_CHECKING:
    import torch

ROWS = 8
"""Answers scored at once: their logits, a vocabulary for every token, are what takes the room."""


class Read:
    """Conversations as a model has read them. The model acts in the same role whenever this is asked."""

    def __init__(self, model: Any, prefixes: Sequence[Sequence[int]]) -> None:
        """
        Args:
            prefixes: token ids of the conversations.
        """
        self.model, self.prefixes = model, [list(prefix) for prefix in prefixes]
        self.again = is_recurrent(model) or is_encoder_decoder(model)
        if not self.again:
            self._read()

    def _read(self) -> None:
        import torch

        with torch.inference_mode():
            self.decoding: Any
            self.decoding, self.logits_PV = begin(self.model, self.prefixes)

    def logprobs(self, places: Sequence[int], answers: Sequence[Sequence[int]]) -> list["torch.Tensor"]:
        """log p(token | what precedes it) of every token of answers, in nats.

        Args:
            places: of the conversation that each answer belongs to.
            answers: token ids of the answers, none of them empty.

        Returns:
            For each answer a float32 tensor of its length, on the processor.
        """
        import torch

        if self.again:
            return padded_logprobs(self.model, [self.prefixes[place] for place in places], answers)
        found: dict[int, torch.Tensor] = {}
        for chosen in by_length([len(answer) for answer in answers], self.model.device, most=ROWS):
            after = [answers[row] for row in chosen]
            with torch.inference_mode():
                logprobs_BL = self._after([places[row] for row in chosen], after).cpu()
            found |= {row: logprobs_BL[at, : len(answers[row])] for at, row in enumerate(chosen)}
        return [found[row] for row in range(len(answers))]

    def _after(self, places: Sequence[int], answers: Sequence[Sequence[int]]) -> "torch.Tensor":
        """Of answers that are padded on the right, (B, L)."""
        import torch

        ids_BL, seen_BL = padded(answers, self.model.device)
        rows_B = torch.tensor(places, device=self.model.device)
        logits_BLV = self.logits_PV[rows_B, None]
        if ids_BL.shape[1] > 1:
            before = self.decoding.copied(rows_B)
            mask_BT = torch.cat([before.mask_BT, seen_BL[:, :-1]], dim=1)
            rest = self.model(
                ids_BL[:, :-1],
                attention_mask=mask_BT,
                position_ids=positions(mask_BT)[:, before.mask_BT.shape[1] :],
                past_key_values=before.cache,
                use_cache=True,
            ).logits
            logits_BLV = torch.cat([logits_BLV, rest], dim=1)
        return token_logprobs(logits_BLV.float(), ids_BL)


class Opening(NamedTuple):
    """What many conversations begin with, such as a system message, as a model has read it."""

    ids: Sequence[int]
    cache: Any
    """None: there is nothing, or its state could not go on with several tokens."""

    @classmethod
    def of(cls, model: Any, ids: Sequence[int]) -> "Opening":
        """Reads it, in the role in which the model will be asked."""
        import torch
        from transformers import DynamicCache

        if not ids or is_recurrent(model) or is_encoder_decoder(model):
            return cls((), None)
        cache = DynamicCache(config=model.config)
        with torch.inference_mode():
            model(
                torch.tensor([list(ids)], device=model.device), past_key_values=cache, use_cache=True, logits_to_keep=1
            )
        return cls(tuple(ids), cache)

    def begins(self, prefix_T: Sequence[int]) -> bool:
        """Whether a conversation begins with it and goes on."""
        return bool(self.ids) and len(prefix_T) > len(self.ids) and tuple(prefix_T[: len(self.ids)]) == self.ids


def answer_logprobs(
    model: Any, prefix_T: Sequence[int], answers: Sequence[Sequence[int]], opening: Opening | None = None
) -> list["torch.Tensor"]:
    """log p(token | what precedes it) of every token of several answers to one conversation, in nats.

    The conversation is computed once and its cache shared by the answers, where the model's cache can go on with
    several tokens at once.

    Args:
        prefix_T: token ids of the conversation.
        answers: token ids of the answers, none of them empty.
        opening: what the conversation may begin with; it is not read again then.

    Returns:
        For each answer a float32 tensor of its length, on the processor.
    """
    import torch
    from transformers import DynamicCache

    if is_recurrent(model) or is_encoder_decoder(model):
        return padded_logprobs(model, [prefix_T] * len(answers), answers)
    found: dict[int, torch.Tensor] = {}
    with torch.inference_mode():
        if opening is None or not opening.begins(prefix_T):
            opening = Opening((), DynamicCache(config=model.config))
        cache = copy.deepcopy(opening.cache)
        prefix_1T = torch.tensor([list(prefix_T[len(opening.ids) :])], device=model.device)
        logits_11V = model(prefix_1T, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        for rows in by_length([len(answer) - 1 for answer in answers], model.device):
            # Padded on the right, where a causal model's earlier positions cannot see.
            ids_NL = padded([answers[row] for row in rows], model.device)[0]
            logits_NLV = logits_11V.expand(len(rows), -1, -1)
            if ids_NL.shape[1] > 1:
                before = copy.deepcopy(cache)
                before.batch_repeat_interleave(len(rows))
                rest = model(ids_NL[:, :-1], past_key_values=before, use_cache=True).logits
                logits_NLV = torch.cat([logits_NLV, rest], dim=1)
            logprobs_NL = token_logprobs(logits_NLV.float(), ids_NL).cpu()
            found |= {row: logprobs_NL[at, : len(answers[row])] for at, row in enumerate(rows)}
    return [found[row] for row in range(len(answers))]
