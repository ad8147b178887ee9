"""Where a number comes from."""

from __future__ import annotations

from bnrepro import provenance


def test_provenance_names_versions_and_machine() -> None:
    assert {"python", "bnrepro", "torch", "torchvision"} <= set(provenance.versions())
    assert "cores" in provenance.machine()
