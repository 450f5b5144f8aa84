"""Given the totals, who gets the request?"""

from inferencesched.pickers.chance import RandomPicker, RoundRobinPicker, WeightedRandomPicker
from inferencesched.pickers.score import MaxScorePicker, PowerOfTwoPicker

__all__ = ["MaxScorePicker", "PowerOfTwoPicker", "RandomPicker", "RoundRobinPicker", "WeightedRandomPicker"]
