"""Given the totals, who gets the request?"""

from inferencesched.pickers.chance import RandomPicker, RoundRobinPicker, WeightedRandomPicker
from inferencesched.pickers.explore import EpsilonGreedyPicker, SoftmaxPicker
from inferencesched.pickers.score import MaxScorePicker, PowerOfTwoPicker

__all__ = [
    "EpsilonGreedyPicker",
    "MaxScorePicker",
    "PowerOfTwoPicker",
    "RandomPicker",
    "RoundRobinPicker",
    "SoftmaxPicker",
    "WeightedRandomPicker",
]
