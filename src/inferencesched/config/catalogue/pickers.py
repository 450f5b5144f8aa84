"""Pickers, by the names of llm-d's router."""

from inferencesched.config.spec import Parameters, PluginSpec
from inferencesched.pickers import MaxScorePicker, RandomPicker, WeightedRandomPicker


class PickerParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``maxNumOfEndpoints``: how many to return, best first; 0 or less is 1, as in llm-d."""

    max_num_of_endpoints: int = 1

    @property
    def count(self) -> int:
        """How many are meant?"""
        return max(1, self.max_num_of_endpoints)


SPECS = (
    PluginSpec(
        "max-score-picker",
        ("picker",),
        PickerParameters,
        lambda p, w: MaxScorePicker(p.count),
        MaxScorePicker,
        lambda picker: PickerParameters(max_num_of_endpoints=picker.count),
    ),
    PluginSpec(
        "random-picker",
        ("picker",),
        PickerParameters,
        lambda p, w: RandomPicker(p.count),
        RandomPicker,
        lambda picker: PickerParameters(max_num_of_endpoints=picker.count),
    ),
    PluginSpec(
        "weighted-random-picker",
        ("picker",),
        PickerParameters,
        lambda p, w: WeightedRandomPicker(p.count),
        WeightedRandomPicker,
        lambda picker: PickerParameters(max_num_of_endpoints=picker.count),
    ),
)
