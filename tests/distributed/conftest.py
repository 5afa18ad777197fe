"""Workers of these tests start warm."""

from collections.abc import Iterator

import pytest

from distributed import warm


@pytest.fixture(scope="package")
def warm_workers() -> Iterator[None]:
    """One server for all tests that start processes."""
    with warm.started():
        yield
