"""tests/service/conftest.py - one service for all tests that can share it."""
import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from service import MODEL, Service  # noqa: E402


def pytest_collection_modifyitems(items):
    """Tests that name a fixture of a whole service need the model."""
    for item in items:
        needs = {"aggregated", "disaggregated", "needs_model"} & set(item.fixturenames)
        if needs and not os.path.exists(MODEL):
            item.add_marker(pytest.mark.skip(reason="RANKSERVE_TEST_MODEL is not set"))


@pytest.fixture(scope="session")
def needs_model():
    return MODEL


@pytest.fixture(scope="session")
def aggregated():
    """One worker of role both."""
    with Service() as s:
        yield s


@pytest.fixture(scope="session")
def disaggregated():
    """One prefill and one decode worker."""
    with Service("--prefill", 1, "--decode", 1, "--debug-headers") as s:
        yield s
