"""`--benchmark` times; without it the same files run small, as smoke tests."""

import pytest


def pytest_addoption(parser):
    parser.addoption("--benchmark", action="store_true", help="time at full size and append rows to benchmarks/results")


@pytest.fixture
def full(request):
    """Whether to time at full size."""
    return request.config.getoption("--benchmark")
