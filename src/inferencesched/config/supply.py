"""Which producers fill the columns that a configuration's plug-ins read?

Those that it lists, and for a column that is required and that nobody fills, the type that usually does: it is made, and so
is whatever that one needs. Of several that fill the same column, each fills it under its own name for whoever asks for
that one; the usual one, or else the first, also fills the plain column.
"""

from collections.abc import Set
from typing import Any, NamedTuple

import msgspec

from inferencesched.config.decode import decode, encode, found, one_of
from inferencesched.config.document import Remark
from inferencesched.config.spec import Need, Opaque, PluginSpec
from inferencesched.config.workbench import Instance, Workbench, place_of
from inferencesched.endpoints import Signal
from inferencesched.errors import ConfigError
from inferencesched.framework import DataProducer, Reader
from inferencesched.producers.named import named_producer


class Supply(NamedTuple):
    """Who runs before scoring, and which of them was not listed?"""

    producers: tuple[DataProducer[Any], ...]
    created: tuple[str, ...]


def supply(bench: Workbench) -> Supply:
    """Return the producers of what is on the bench, made where they are missing.

    Errors: `ConfigError` where a producer is named that is not there or fills something else, and where two plug-ins need the
    same producer in different ways.
    """
    created: dict[str, Instance] = {}
    waiting = [(instance, need) for instance in bench.instances.values() for need in _needs(instance)]
    usual: set[str] = set()
    while waiting:
        instance, need = waiting.pop(0)
        column = need.signal.name
        base, _, name = column.partition("@")
        usual.add(need.producer_type)
        if _of(bench, column):
            _same_way(bench, created.get(column), instance, need)
            continue
        if name and name in bench.instances:
            _fills_it(bench.instances[name], base, instance)
            continue
        if name and name != need.producer_type and need.parameters is None:
            raise _nobody(bench, instance, base, name)
        if need.signal.freshness != "cycle":
            continue  # the pool has it, or the gateway observes it
        if not need.required and not name:
            words = f"reads {base}, which nobody fills; {need.producer_type} would"
            bench.remarks.append(Remark("assumed", instance.path, instance.name, words))
            continue
        made = _create(bench, instance, need)
        created[column] = made
        waiting.extend((made, each) for each in _needs(made))
    _read_plainly(bench, usual)
    return Supply(_wired(bench, usual), tuple(each.name for each in created.values()))


def _needs(instance: Instance) -> tuple[Need, ...]:
    return instance.spec.needs(instance.parameters)


def _of(bench: Workbench, column: str) -> list[Instance]:
    """Return the producers that fill a column, in the order of the configuration."""
    return [each for each in bench.of_kind("producer") if any(signal.name == column for signal in each.plugin.produces)]


def _fills_it(producer: Instance, base: str, reader: Instance) -> None:
    if producer.is_a("producer") and all(signal.name != base for signal in producer.plugin.produces):
        fills = ", ".join(signal.name for signal in producer.plugin.produces)
        raise ConfigError(
            place_of(reader, producer.name), producer.name, f"a producer of {base}: this one fills {fills}"
        )


def _nobody(bench: Workbench, reader: Instance, base: str, name: str) -> ConfigError:
    known = [each.name for each in _of(bench, base)]
    return ConfigError(
        place_of(reader, name), name, one_of(name, known, f"a producer of {base} in this configuration, ")
    )


def _same_way(bench: Workbench, made: Instance | None, instance: Instance, need: Need) -> None:
    """Raise `ConfigError` where a producer was made for one plug-in, and another needs it set up in another way."""
    if made is None or need.parameters is None or made.spec.read is None:
        return
    other = Instance(made.name, made.spec, decode(made.spec.parameters, need.parameters, instance.path), instance.path)
    if made.spec.read(bench.trial(other)) != made.spec.read(made.plugin):
        said = encode(made.parameters)
        allowed = f"those with which {made.name} is made for another plug-in: {said}; or list the producers"
        raise ConfigError(f"{instance.path}.parameters", found(encode(other.parameters)), allowed)


def _create(bench: Workbench, instance: Instance, need: Need) -> Instance:
    kind, (base, _, name) = need.producer_type, need.signal.name.partition("@")
    if kind not in bench.registry:
        allowed = f"a producer of {base}, which it reads: none is listed, and {kind or 'nothing'} is not registered"
        raise ConfigError(instance.path, instance.name, allowed)
    if "producer" not in bench.registry[kind].kinds:
        allowed = f"a producer of {base}, which it reads: none is listed, and {kind} is none"
        raise ConfigError(instance.path, instance.name, allowed)
    called = kind if kind not in bench.instances else f"{kind}@{name}" if name else f"{kind} for {instance.name}"
    made = bench.add(called, kind, need.parameters, f"{instance.path} (needs {kind})")
    bench.make()
    fills = {signal.name for signal in made.plugin.produces}
    if need.signal.name not in fills and not (base in fills and made.name == name):
        raise ConfigError(instance.path, instance.name, f"a producer of {need.signal.name}: {kind} does not fill it")
    words = f"reads {need.signal.name}: {kind} is made to fill it"
    bench.remarks.append(Remark("assumed", instance.path, instance.name, words, kind))
    return made


def _read_plainly(bench: Workbench, usual: Set[str]) -> None:
    """Let whoever names the producer of the plain columns read those: kernels know them, and names cost a mapping a cycle.

    What a producer is made of stays as it is.
    """
    held = bench.used_by(bench.of_kind("producer"))
    plainly: dict[str, msgspec.Struct] = {}
    for instance in bench.instances.values():
        if instance.is_a("producer") or instance.name in held or isinstance(instance.parameters, Opaque):
            continue
        parameters = instance.parameters
        for name in {column.partition("@")[2] for column in _columns(instance.spec, parameters)} & set(bench.instances):
            fields = msgspec.structs.asdict(parameters)
            other = msgspec.structs.replace(parameters, **{key: "" for key, said in fields.items() if said == name})
            wanted = [column.removesuffix(f"@{name}") for column in _columns(instance.spec, parameters)]
            owners = [
                _plain(bench, column, usual).name
                for column, said in zip(wanted, _columns(instance.spec, parameters), strict=True)
                if column != said and _of(bench, column)
            ]
            if wanted == _columns(instance.spec, other) and owners and set(owners) == {name}:
                parameters = other
        if parameters is not instance.parameters:
            plainly[instance.name] = parameters
    if plainly:
        bench.make_again(plainly, held)


def _columns(spec: PluginSpec, parameters: msgspec.Struct) -> list[str]:
    return [need.signal.name for need in spec.needs(parameters)]


# --- which of several --------------------------------------------------------------------------------------------


def _wired(bench: Workbench, usual: Set[str]) -> tuple[DataProducer[Any], ...]:
    """Return the producers, under several names where several fill the same or somebody asks for one by name."""
    asked = _asked(bench)
    producers: list[DataProducer[Any]] = []
    for instance in bench.of_kind("producer"):
        fills: tuple[Signal, ...] = instance.plugin.produces
        plain = [each for each in fills if _plain(bench, each.name, usual) is instance]
        named = [each for each in fills if (each.name, instance.name) in asked]
        if fills and not plain and not named:
            words = "is not used: another producer fills the same, and nobody asks for this one by name"
            bench.remarks.append(Remark("ignored", instance.path, instance.name, words))
        elif named or len(plain) < len(fills):
            producers.append(named_producer(instance.plugin, instance.name, plain=plain, named=named))
        else:
            producers.append(instance.plugin)
    return tuple(producers)


def _asked(bench: Workbench) -> set[tuple[str, str]]:
    """Return which columns are read of which producer by its name."""
    asked = set()
    for instance in bench.instances.values():
        wanted = [need.signal.name for need in _needs(instance)]
        reads = instance.plugin.reads if isinstance(instance.plugin, Reader) else ()
        wanted += [read.signal.name for read in reads]
        for column in wanted:
            base, _, name = column.partition("@")
            if name and not _of(bench, column):
                if name not in bench.instances:
                    raise _nobody(bench, instance, base, name)
                asked.add((base, name))
    return asked


def _plain(bench: Workbench, column: str, usual: Set[str]) -> Instance:
    """Return who fills the plain column: a producer of a type that somebody would have made, else the first."""
    return min(_of(bench, column), key=lambda each: (each.name not in usual, each.spec.name not in usual))
