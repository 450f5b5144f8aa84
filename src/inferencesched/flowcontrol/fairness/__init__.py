"""Which flow of a band goes next?

A `FairnessPolicy` is parameters; ``start`` returns the state of one band, a `FlowOrder`. It hears when a flow begins to wait
(`arrived`), what a dispatch is charged (`served`), what a completion corrects (`settled`), and when another ticket has become
its head (`changed`); it answers `pick`. W is what a flow was served, w its weight, C its greatest charge, over any time in
which both flows have something waiting:

| policy | bound of ``W_f / w_f - W_g / w_g`` | cost of a pick |
|---|---|---|
| `GlobalStrict` | none: the first by the band's ordering, whosoever it is | O(log F) |
| `RoundRobin` | none in cost; one request in requests | O(log F) |
| `VirtualTokenCounter` | 2 C / w, counters within C / w; with settlement 2 (C + K E) / w, w the least weight | O(log F) |
| `StartTimeFair` | C_f / w_f + C_g / w_g | O(log F) |
| `DeficitRoundRobin` | Q + C_f / w_f + C_g / w_g | O(1) where Q w is at least C |
| `LeastAttainedService` | none: who was away has credit | O(F); O(log F) without waits |
| `DeficitLongestPrefix` | 2 (C / w + Q), not counting cached tokens | as many flows as it looks at |
| `DoubleDeficitLongestPrefix` | S times as much on S servers | the same, times S |

Costs are known when a request is dispatched, or corrected when it completes: by E at most, with K requests in flight.
"""

from inferencesched.flowcontrol.fairness.attained import LeastAttainedService
from inferencesched.flowcontrol.fairness.counters import StartTimeFair, VirtualTokenCounter
from inferencesched.flowcontrol.fairness.locality import DeficitLongestPrefix, DoubleDeficitLongestPrefix
from inferencesched.flowcontrol.fairness.measures import WaitMeans, jain_index
from inferencesched.flowcontrol.fairness.order import FairnessPolicy, FlowHeap, RankedOrder
from inferencesched.flowcontrol.fairness.strict import GlobalStrict
from inferencesched.flowcontrol.fairness.turns import DeficitRoundRobin, RoundRobin

__all__ = [
    "DeficitLongestPrefix",
    "DeficitRoundRobin",
    "DoubleDeficitLongestPrefix",
    "FairnessPolicy",
    "FlowHeap",
    "GlobalStrict",
    "LeastAttainedService",
    "RankedOrder",
    "RoundRobin",
    "StartTimeFair",
    "VirtualTokenCounter",
    "WaitMeans",
    "jain_index",
]
