"""Measures shared by all tests: `from tests.tools import relative_error`."""

import numpy as np


def relative_error(actual, expected) -> float:
    """max|a−b| / max(1, max|b|): the error measure of the reference vectors."""
    actual, expected = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    assert actual.shape == expected.shape, f"shape {actual.shape} instead of {expected.shape}"
    if expected.size == 0:
        return 0.0
    return float(np.abs(actual - expected).max() / max(1.0, np.abs(expected).max()))
