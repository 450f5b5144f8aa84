"""A local Ray for the end-to-end tests that need one."""

import pytest

ray = pytest.importorskip("ray", reason="ray is not installed: `make e2e` installs it")


@pytest.fixture(scope="module")
def cluster():
    """A local Ray, for all tests of a module."""
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
