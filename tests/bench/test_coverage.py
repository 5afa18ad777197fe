"""A short `make coverage`: every interval holds what was planted, and nothing is claimed where there is nothing."""

import math

import pytest

from bench.coverage import ESTIMATORS, simulate

SHORT = {
    "win rate": 150,
    "win rate, 12 and 20 prompts": 300,
    "win rate, bootstrap": 150,
    "win rates under Holm": 60,
    "mean, bootstrap": 120,
    "strength, Bradley-Terry": 40,
    "side, Bradley-Terry": 40,
    "win rate at equal length": 500,
    "prediction-powered": 1000,
    "Rogan-Gladen": 100,
}
"""Experiments in less than a second of one core each."""


@pytest.mark.parametrize("name", ESTIMATORS)
def test_intervals_cover_what_was_planted_and_claims_are_as_rare_as_is_said(name: str) -> None:
    found, experiments = simulate(name, SHORT[name], seed=2), SHORT[name]
    # Four standard errors of a share of so many experiments, beside the one point that `make coverage` allows; half of
    # the experiments have no difference. That shows a lost factor; clusters and corrections have tests of their own.
    error = 4 * math.sqrt(0.95 * 0.05 / experiments)
    assert abs(found["coverage"] - 0.95) <= 0.01 + error
    assert found["false_better"] <= 0.05 + math.sqrt(2) * error
