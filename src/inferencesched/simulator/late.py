"""What if requests wait at the gateway until their server is about to be free, as a `LateBinder` has them?

The binder steps at arrivals, and while somebody waits whenever the gateway hears of a first token or an end.
"""

from math import inf

import numpy as np

from inferencesched._typing import FloatArray
from inferencesched.errors import InvalidInputError
from inferencesched.marginal import LateBinder
from inferencesched.simulator.policies import Policy
from inferencesched.simulator.simulation import Cluster, Course
from inferencesched.simulator.workload import Workload


class LateSimulation(Course):
    """What happens, arrival by arrival, if a binder holds requests back? See `simulate`.

    Stepwise: `step` brings the next arrival, and before it all that happens until then; `finish` lets everybody go and every server finish.
    ``wait`` float64[N] ms from arrival to the server, NaN where it is not there yet.
    """

    def __init__(self, workload: Workload, policy: Policy, cluster: Cluster) -> None:
        super().__init__(workload, policy, cluster)
        if policy.bind is None:
            raise InvalidInputError("policy", policy.name, "a policy that binds late")
        self.binder: LateBinder = policy.bind(self.fleet, self.scheduler)
        self.arrived = 0

    @property
    def wait(self) -> FloatArray:
        """How long did each wait?"""
        sent = [np.nan if each is None else each.reserved_at * 1e3 for each in self.reservations]
        return np.array(sent) - self.workload.arrival

    def arrive(self) -> tuple[str, float]:
        """Bring the next arrival and have it wait; return its id and its time in ms. Nobody is sent yet."""
        place = self.arrived
        now = self._arrival[place]
        self._pass(now)
        if now > self._clock:
            self.look(now)
        self.arrived += 1
        self.binder.submit(self.request(place), now=now / 1e3)
        return str(place), now

    def step(self) -> int:
        """Bring the next arrival; return how many went to a server."""
        _, now = self.arrive()
        if self.arrived < len(self._arrival) and self._arrival[self.arrived] == now:
            return 0  # who comes at the same time is planned together
        return self.send_bound(self.binder, now)

    def finish(self) -> None:
        """Let everybody go who waits; then let every server finish what it has."""
        self._pass(inf)
        super().finish()

    def _pass(self, until: float) -> None:
        """Let time pass, while somebody waits, from one thing that the gateway hears to the next."""
        while len(self.binder):
            at = self._unheard[0][0] if self._unheard else self.fleet.advance_to_event(until) + self.cluster.answer_ms
            if at >= until:
                if until == inf:  # nothing is left to be heard of, and still somebody waits: no server may take it
                    raise InvalidInputError("binder", f"{len(self.binder)} waiting", "nobody who can go nowhere")
                return
            self.look(at)
            self.send_bound(self.binder, at)
