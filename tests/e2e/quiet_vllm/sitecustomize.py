"""Let vLLM's processes wait without spinning: on PYTHONPATH of the servers that `make e2e` starts, and nowhere else.

Each engine process and each worker polls a shared buffer for a second after every message, giving way to others but never sleeping
(``shm_broadcast``, ``sched_yield``). Six of them on two cores starve one another: TTFT comes in whole seconds, whoever routes. Here they
sleep for a millisecond between two looks; nothing else is touched.
"""

import sys
import time
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import PathFinder

_MODULE = "vllm.distributed.device_communicators.shm_broadcast"
_SECONDS = 0.001


class _Quiet(MetaPathFinder, Loader):
    """Finds the one module as everybody does, and changes how it waits when it has run."""

    def find_spec(self, name, path=None, target=None):
        """Answer for that module alone."""
        if name != _MODULE:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            self.loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec):
        """As everybody does."""
        return self.loader.create_module(spec)

    def exec_module(self, module):
        """Run it, then have it sleep between two looks."""
        self.loader.exec_module(module)
        module.sched_yield = lambda: time.sleep(_SECONDS)


sys.meta_path.insert(0, _Quiet())
