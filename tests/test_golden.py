"""What the data sets give and say is what tests/golden.json holds of them: see tests/golden_record.py."""

import warnings

import pytest

from tests import golden_record


@pytest.mark.parametrize("name", golden_record.PARTS)
def test_part_of_the_record(name, tmp_path, request):
    data = request.getfixturevalue("shared_data") if golden_record.PARTS[name].real else None
    record = golden_record.read_record()
    if record["made with"] != golden_record.made_with():
        warnings.warn(f"record made with {record['made with']}: pixels are not compared", stacklevel=1)
    told = golden_record.differences(name, record, golden_record.compute(name, data, tmp_path))
    if told:
        head = f"{len(told)} values differ; python -m tests.golden_record {name} prints them"
        pytest.fail("\n".join([head, *told]), pytrace=False)
