"""The temperature in the agent's metrics, from thermal zones as Linux shows them."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from runtime import environment
from runtime.serving.metrics import Metrics


def celsius() -> list[float]:
    """The samples of a scrape."""
    metrics = Metrics("pi", "an-id")
    metrics.watch(lambda: [])
    families = text_string_to_metric_families(generate_latest(metrics.registry).decode())
    return [
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == "edgevit_temperature_celsius"
    ]


def test_the_hottest_zone_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "THERMAL", tmp_path)
    assert celsius() == []
    zones = {"0": "48312\n", "1": "61500\n", "2": "", "3": "no number", "4": "-274000", "5": "0"}
    for number, text in zones.items():
        (tmp_path / f"thermal_zone{number}").mkdir()
        (tmp_path / f"thermal_zone{number}" / "temp").write_text(text)
    (tmp_path / "thermal_zone6").mkdir()  # one that cannot be read now
    assert celsius() == [61.5]
    (tmp_path / "thermal_zone1" / "temp").write_text("39000")
    assert celsius() == [48.312]
