"""The comparison of saves and loads runs, and reads back what it wrote."""

from tests.faults import save_speed


def test_the_comparison_runs(tmp_path):
    outcome = save_speed.run(False, tmp_path)
    assert outcome.failures == [] and all(name in outcome.note for name in ("save", "torch.load", " MB"))


def test_other_weights_are_seen(tmp_path, monkeypatch):
    content = save_speed.checkpoint(False)
    for value in content["model"].values():
        value.zero_()
    monkeypatch.setattr(save_speed, "load_file", lambda path: {"model": {"w": save_speed.first(content) - 1}})
    assert save_speed.run(False, tmp_path).failures == ["load gave other weights"]
