"""Where the reference material lies, beside the checkout; tests that read it skip where it is absent."""

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("INFERENCESCHED_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def shared(path):
    """Return the file, or skip the test with the reason."""
    file = SHARED / path
    if not file.exists():
        pytest.skip(f"reference material {path} is not beside this checkout", allow_module_level=True)
    return file
