"""The short version of tests/faults/kills.py."""

import pytest

from tests.faults import kills


@pytest.mark.slow
def test_killed_runs_end_as_uncut_ones(tmp_path):
    outcome = kills.run(False, tmp_path)
    assert outcome.failures == [] and outcome.good == outcome.total > 0
