"""Labels survive a server that fails in 30 % of its calls, kills, and a budget: `make bench-faults`, small."""

import pytest
from bench.faults import measure


@pytest.mark.slow
def test_every_pair_is_labelled_once_or_left_open_with_a_reason_whatever_is_killed() -> None:
    found = measure(pairs=700, kills=4, cap=0.9)
    assert found["last_exit"] == 0 and found["kills"] >= 1
    assert found["lost"] == found["labelled_twice"] == found["asked_twice"] == 0
    assert found["labelled_once"] + sum(found["abstained"].values()) == 700
    assert found["labelled_once"] > 500
    assert found["stops_by_budget"] == 1
    assert found["bill"] <= found["spend"] <= found["cap"]
    assert found["spend_under_low_cap"] <= found["low_cap"]
