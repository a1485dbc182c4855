"""Odd and wrong input through train.py, validation.py and predict.py: see tests/faults/catalogue.py."""

import pytest

from tests.faults import catalogue


@pytest.mark.parametrize("case", catalogue.cases(), ids=lambda case: case.name)
def test_case(case, tmp_path):
    catalogue.trial(case, tmp_path)
