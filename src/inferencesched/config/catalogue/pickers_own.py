"""Pickers that the reference lacks."""

from inferencesched.config.spec import Parameters, PluginSpec, Workshop
from inferencesched.pickers import EpsilonGreedyPicker, PowerOfTwoPicker, RoundRobinPicker, SoftmaxPicker


class RoundRobinParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``maxNumOfEndpoints``: how many to return, best first."""

    max_num_of_endpoints: int = 1


class PowerOfTwoParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``choices``: how many are drawn, of which the best gets it."""

    choices: int = 2


class EpsilonGreedyParameters(RoundRobinParameters, frozen=True, kw_only=True, rename="camel"):
    """``epsilon``: how often anybody is drawn instead of the best."""

    epsilon: float = 0.05


class SoftmaxParameters(RoundRobinParameters, frozen=True, kw_only=True, rename="camel"):
    """``temperature``: over which difference of totals the odds fall by e; ``normalized``: totals are scaled to [0, 1]."""

    temperature: float = 0.1
    normalized: bool = True


def _epsilon_greedy(p: EpsilonGreedyParameters, workshop: Workshop) -> EpsilonGreedyPicker:
    return EpsilonGreedyPicker(p.epsilon, p.max_num_of_endpoints)


def _read_epsilon_greedy(picker: EpsilonGreedyPicker) -> EpsilonGreedyParameters:
    return EpsilonGreedyParameters(epsilon=picker.epsilon, max_num_of_endpoints=picker.count)


def _softmax(p: SoftmaxParameters, workshop: Workshop) -> SoftmaxPicker:
    return SoftmaxPicker(p.temperature, p.normalized, p.max_num_of_endpoints)


def _read_softmax(picker: SoftmaxPicker) -> SoftmaxParameters:
    return SoftmaxParameters(
        temperature=picker.temperature, normalized=picker.normalized, max_num_of_endpoints=picker.count
    )


SPECS = (
    PluginSpec(
        "round-robin-picker",
        ("picker",),
        RoundRobinParameters,
        lambda p, w: RoundRobinPicker(p.max_num_of_endpoints),
        RoundRobinPicker,
        lambda picker: RoundRobinParameters(max_num_of_endpoints=picker.count),
        origin="own",
    ),
    PluginSpec(
        "power-of-two-picker",
        ("picker",),
        PowerOfTwoParameters,
        lambda p, w: PowerOfTwoPicker(p.choices),
        PowerOfTwoPicker,
        lambda picker: PowerOfTwoParameters(choices=picker.choices),
        origin="own",
    ),
    PluginSpec(
        "epsilon-greedy-picker",
        ("picker",),
        EpsilonGreedyParameters,
        _epsilon_greedy,
        EpsilonGreedyPicker,
        _read_epsilon_greedy,
        origin="own",
    ),
    PluginSpec(
        "softmax-picker",
        ("picker",),
        SoftmaxParameters,
        _softmax,
        SoftmaxPicker,
        _read_softmax,
        origin="own",
    ),
)
