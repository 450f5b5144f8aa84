"""What if the simplest policies need no call to Python? Whole replays in one kernel, with the results of the plug-ins.

`simulate` takes this way by itself where a policy has a kernel and nothing is asked that needs Python: no flow control, no late answers.
"""

from math import inf
from typing import Final, final

import numpy as np

from inferencesched._kernels import replaying
from inferencesched._kernels import serving_state as columns
from inferencesched._typing import FloatArray, IntArray
from inferencesched.errors import InvalidInputError
from inferencesched.reservation import Ledger
from inferencesched.simulator.policies import Policy
from inferencesched.simulator.simulation import Cluster
from inferencesched.simulator.workload import Workload

#: How many requests one call brings: enough that the call costs nothing, few enough for a progress bar.
CHUNK: Final = 8_192


def compilable(policy: Policy, cluster: Cluster) -> bool:
    """Does a kernel make this policy's choices on this cluster?"""
    return policy.compiled is not None and not cluster.answer_ms and not cluster.eventful


@final
class CompiledSimulation:
    """What happens, many requests at a time? `advance` brings the next ones, `finish` drains the servers.

    ``workload`` and ``fleet`` are what `Simulation` has. Cost: some 2 us a request and 10 ns a running request and pass; memory some 200
    bytes a request, 8 a block, and 16 a pass.
    """

    def __init__(self, workload: Workload, policy: Policy, cluster: Cluster) -> None:
        if policy.compiled is None:
            raise InvalidInputError("policy", policy.name, "a policy that has a kernel")
        self.workload = workload.at_speed(cluster.speedup).in_blocks(cluster.engine.block_size)
        self.fleet = cluster.fleet(self.workload)
        self.decided = 0
        self._kind = policy.compiled
        self._rng = np.random.default_rng(np.random.SeedSequence(cluster.seed).spawn(3)[0])  # the one of `Course`
        self._clock = -1.0
        self._flying: IntArray = np.zeros(cluster.servers, dtype=np.int64)
        self._picked: IntArray = np.full(cluster.servers, -1, dtype=np.int64)
        self._never: FloatArray = np.full(cluster.servers, np.nan)
        self._overlap: IntArray = np.zeros(cluster.servers, dtype=np.int64)

    def advance(self, count: int = CHUNK) -> None:
        """Bring the next `count` arrivals to their servers."""
        live, arrival = self.fleet.state, self.workload.arrival
        end = min(len(arrival), self.decided + count)
        self.fleet.regret_blocks += replaying.replay(
            live, self._kind, arrival, self.decided, end, self._clock, self._flying, self._picked, self._rng,
            self._never, self.fleet.signals, self._overlap,
        )  # fmt: skip
        self.decided = end
        self._clock = float(arrival[end - 1]) if end else self._clock

    def finish(self) -> None:
        """Let every server finish what it has."""
        self.fleet.advance(inf)

    def ledger(self) -> Ledger:
        """What would the books say? Everything that was sent has ended."""
        sent = self.fleet.server >= 0
        done = sent & ~np.isnan(self.fleet.finish)
        tokens, settled = (int(self.fleet.state.requests[each, columns.INPUT].sum()) for each in (sent, done))
        counts = int(sent.sum()), int(done.sum())
        return Ledger(counts[0], counts[1], counts[0] - counts[1], tokens, settled, tokens - settled)
