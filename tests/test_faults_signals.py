"""The short version of tests/faults/signals.py."""

import pytest

from tests.faults import signals


@pytest.mark.slow
def test_signals_lose_no_step(tmp_path):
    outcome = signals.run(False, tmp_path)
    assert outcome.failures == [] and outcome.good == outcome.total > 0
