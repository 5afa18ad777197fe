"""On a processor the vocabulary is multiplied with the positions that have a label, and what comes out is the same."""

from typing import Any

import numpy as np
import pytest
import torch
from tiny import full_logprobs
from trl.kernels import chunked_logprob
from trl.trainer import utils

from pipeline.algorithms.output_layer import count_labels_alone

IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]])
LABELS = IDS.masked_fill(torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 1, 1]]).bool(), -100)
"""Two tokens of the first row count, and one of the second."""


@pytest.fixture
def positions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of every multiplication with the output layer, from TRL as it is installed; any step that trained in
    this process has changed it. Afterwards it is as it was."""
    counted: list[int] = []

    class Counting:
        @staticmethod
        def apply(hidden: torch.Tensor, *rest: Any) -> Any:
            counted.append(len(hidden))
            return original.apply(hidden, *rest)

    original = utils._ChunkedLogProbFunction
    monkeypatch.setattr(utils, "_ChunkedLogProbFunction", Counting)
    monkeypatch.setattr(utils, "_use_triton", chunked_logprob._use_triton)
    return counted


def logprobs(model: Any, labels: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model(IDS, labels=labels, fused_lm_head=True).log_probs
    return found


@pytest.fixture
def fused(tiny: Any) -> Any:
    from pipeline.models import load_model

    model = load_model(tiny)
    utils.add_fused_lm_head(model)
    return model


def test_what_has_no_label_is_not_multiplied_and_what_has_one_is_as_a_plain_pass_says(
    fused: Any, positions: list[int]
) -> None:
    logprobs(fused, LABELS)
    count_labels_alone()
    count_labels_alone()  # a second time changes nothing
    found = logprobs(fused, LABELS)
    # Each row's last position predicts nothing, so TRL has ten.
    assert positions == [10, 3]
    expected = np.zeros((2, 5))
    for row in range(2):
        whole = full_logprobs(fused, IDS[row].tolist())
        counts = (LABELS[row, 1:] != -100).numpy()
        expected[row, counts] = whole[counts]
    assert found.detach().numpy() == pytest.approx(expected, abs=1e-5)


def test_the_gradient_is_that_of_all_positions(fused: Any, positions: list[int]) -> None:
    gradients = []
    for begin in (lambda: None, count_labels_alone):
        begin()
        fused.zero_grad()
        fused.requires_grad_(True)
        logprobs(fused, LABELS).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in fused.parameters() if parameter.grad is not None])
    assert positions == [10, 3]
    assert len(gradients[0]) == len(gradients[1]) > 0
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_a_batch_without_any_label_has_a_gradient_of_zero(fused: Any, positions: list[int]) -> None:
    count_labels_alone()
    fused.requires_grad_(True)
    found = logprobs(fused, torch.full_like(LABELS, -100))
    found.sum().backward()
    assert positions == [0]
    assert not found.any()
    assert all(not parameter.grad.any() for parameter in fused.parameters() if parameter.grad is not None)
