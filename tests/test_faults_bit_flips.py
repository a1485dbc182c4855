"""Damaged checkpoints are refused; and damage that is let pass is seen."""

from tests.faults import bit_flips
from train_utils.checkpoints.checkpoint import save_checkpoint


def test_no_damaged_checkpoint_loads(tmp_path):
    outcome = bit_flips.run(False, tmp_path)
    assert outcome.failures == [] and outcome.good == outcome.total > 200
    assert "; 0 pass" in outcome.note


def test_damage_that_passes_is_seen(tmp_path, monkeypatch):
    content = bit_flips.sample()
    save_checkpoint(tmp_path / "other.pth", {**content, "epoch": 4})
    monkeypatch.setattr(bit_flips, "load_file", lambda path: {**content, "epoch": 4})
    outcome = bit_flips.run(False, tmp_path)
    assert outcome.good == 0 and all("OTHER CONTENT" in line for line in outcome.failures)
