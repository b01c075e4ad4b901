"""Answers of a server against those of the run by itself."""

from typing import Any

import pytest


def assert_near(remote: Any, local: Any, tolerance: float = 2e-5) -> None:
    """Both are equal but for the last digits of a number."""
    if isinstance(local, float):
        assert remote == pytest.approx(local, abs=tolerance)
    elif isinstance(local, dict):
        assert [*remote] == [*local]
        for name in local:
            assert_near(remote[name], local[name], tolerance)
    elif isinstance(local, list):
        assert len(remote) == len(local)
        for one, other in zip(remote, local, strict=True):
            assert_near(one, other, tolerance)
    else:
        assert remote == local
