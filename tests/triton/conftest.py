"""Every kernel here writes into memory that is NaN."""

import pytest


@pytest.fixture(autouse=True)
def fresh_memory(poisoned) -> None:
    """What a kernel forgets to write shows, whatever lay there."""
