"""Given the totals, who gets the request?"""

from inferencesched.pickers.score import MaxScorePicker, PowerOfTwoPicker
from inferencesched.pickers.chance import RandomPicker, RoundRobinPicker, WeightedRandomPicker

__all__ = ["MaxScorePicker", "PowerOfTwoPicker", "RandomPicker", "RoundRobinPicker", "WeightedRandomPicker"]
