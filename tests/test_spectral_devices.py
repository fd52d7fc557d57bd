"""`benchmarks.spectral_devices`: probe and circuit agree, and noise is seen."""

import json

import pytest

from benchmarks import spectral_devices


def test_cascades_are_compared_on_each_device(tmp_path):
    names = ["lightning.qubit", "default.mixed"]
    spectral_devices.main(["--devices", *names, "--shots", "4000", "--output", str(tmp_path)])
    rows = json.loads((tmp_path / "spectral_devices.json").read_text())["devices"]
    assert [row["device"] for row in rows] == [name for name in names for _ in range(4)]
    for row in rows:
        measured = row["measurements"] is not None
        assert row["difference"] < (6 if measured else 1e-6)
        assert (row["step"] > 1e-4) == measured and (row["not_odd"] > 1e-4) == measured
        assert row["scale"] == pytest.approx(1, abs=0.2 if measured else 1e-6)


def test_a_probe_that_is_not_its_circuit_s_ends_with_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(
        spectral_devices, "angles_of", lambda cascade: [[0.1, 0.2, 0.3]] * len(cascade.stages)
    )
    with pytest.raises(SystemExit, match=r"differ on lightning\.qubit"):
        spectral_devices.main(
            ["--devices", "lightning.qubit", "--cascades", "muon", "--output", str(tmp_path)]
        )
