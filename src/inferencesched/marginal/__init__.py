"""Which server would make everybody wait least, and is it time to send the request there at all?

Late binding: requests are held at the gateway, planned together by what each would cost everybody, and sent when their server is about to be
free. `MarginalCost` is the cost, `LateBinder` holds and sends.
"""

from inferencesched.marginal.binder import Held, LateBinder, Sent
from inferencesched.marginal.cost import MarginalCost
from inferencesched.marginal.explain import BindingExplanation, CostParts

__all__ = ["BindingExplanation", "CostParts", "Held", "LateBinder", "MarginalCost", "Sent"]
