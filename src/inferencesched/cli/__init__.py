"""What does the command line offer? ``simulate``, ``compare``, ``sweep``, ``calibrate`` and ``explain`` (extra ``cli``), ``serve`` (extra ``gateway``)."""

from collections.abc import Callable, Sequence
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any, Final, cast

import click
import msgspec

from inferencesched._warmup import warmup as compile_kernels
from inferencesched.cli.calibrating import calibrate
from inferencesched.cli.parts import (
    errors,
    guarded,
    make_folder,
    numbers,
    policies_named,
    print_json,
    progress_bar,
    screen,
)
from inferencesched.cli.sweeping import sweep
from inferencesched.config import Document, Loaded, SchedulerDocument
from inferencesched.config import load as load_config
from inferencesched.errors import InvalidInputError, TraceError
from inferencesched.explain import explain as explain_decision
from inferencesched.simulator import (
    FLOWS,
    POLICIES,
    Cluster,
    EngineConfig,
    FlowControl,
    Queueing,
    Replay,
    Run,
    Simulation,
    Workload,
    configured_flow,
    generate,
    read_trace,
    report,
)
from inferencesched.simulator import compare as compare_policies
from inferencesched.simulator import flow as flow_named
from inferencesched.simulator import (
    policy as policy_named,
)
from inferencesched.simulator import (
    simulate as replay_trace,
)
from inferencesched.simulator import tenants as tenants_named
from inferencesched.simulator import (
    timing as timing_named,
)
from inferencesched.simulator.late import LateSimulation
from inferencesched.simulator.policies import USUAL
from inferencesched.simulator.queueing import NONE

#: Seconds for which a connection without a request stays open: longer than clients and proxies keep theirs (60 s mostly), or they send into
#: one that is just being closed.
_KEEP_ALIVE = 75


#: The picture's loads, as multiples of ``--speedup``.
_LOADS = "0.5,1,1.5,2"


_FLOW_HELP: Final = f"{', '.join((NONE, *FLOWS))}; or a gateway's configuration, a .yaml or .json file"


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what all three commands understand."""
    for option in reversed(
        (
            click.argument("trace", required=False, type=click.Path(path_type=Path)),
            click.option("--servers", default=8, show_default=True, help="simulated model servers"),
            click.option("--kv-blocks", default=16_384, show_default=True, help="KV blocks a server"),
            click.option("--block-size", default=64, show_default=True, help="tokens a KV block"),
            click.option("--timing", default="dynamo-mocker", show_default=True, help="step-time model"),
            click.option("--speedup", default=1.0, show_default=True, help="arrivals so many times as fast"),
            click.option("--scrape-ms", default=50.0, show_default=True, help="age of scraped signals; 0 is fresh"),
            click.option("--answer-ms", default=0.0, show_default=True, help="so late is a token or an end heard of"),
            click.option("--news-ms", default=0.0, show_default=True, help="so late is a KV event heard of"),
            click.option("--seed", default=0, show_default=True, help="of every draw"),
            click.option("--partial", is_flag=True, help="replay what comes before a broken trace line"),
        )
    ):
        command = option(command)
    return guarded(command)


def _waiting_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what flow control and tenants need."""
    for option in reversed(
        (
            click.option(
                "--tenants", default=None, help="who asks: name[:share[:priority]][:weight=W][:ttft=S], comma-separated"
            ),
            click.option("--ttl", default=60.0, show_default=True, help="seconds a request may wait; 0 is no limit"),
            click.option("--capacity", default=0, show_default=True, help="requests that may wait; 0 is no limit"),
            click.option(
                "--band-capacity", default=5_000, show_default=True, help="of them of one priority; 0 is no limit"
            ),
            click.option(
                "--queue-depth", default=5.0, show_default=True, help="so many waiting at a server, and it is full"
            ),
        )
    ):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="inferencesched")
def main() -> None:
    """Decide which model server takes which request; try policies on traces.

    TRACE is a Mooncake JSONL or an Azure LLM 2023 CSV file. Without one, a seeded workload of our own is replayed.
    """


@main.command()
@_options
@_waiting_options
@click.option("--policy", "policy_name", default="gie-default", show_default=True, help=", ".join(POLICIES))
@click.option("--flow", "flow_name", default=NONE, show_default=True, help=_FLOW_HELP)
@click.option("--json", "as_json", is_flag=True, help="one JSON object on standard output")
def simulate(trace: Path | None, policy_name: str, flow_name: str, as_json: bool, **options: Any) -> None:
    """Replay a trace under one policy, behind flow control or not."""
    chosen = policy_named(policy_name)
    flow = _flow(flow_name, options)
    cluster = _cluster(options)
    workload = _workload(trace, options)
    with progress_bar(show=not as_json) as bar:
        task = bar.add_task(chosen.name, total=len(workload))

        def progress(arrived: int) -> None:
            bar.update(task, completed=arrived)

        replay = replay_trace(workload, chosen, cluster, flow=flow, progress=progress)
    if as_json:
        print_json(_record(workload, cluster, Run(1.0, replay)))
    else:
        _show([Run(1.0, replay)], title=_title(workload, cluster))


@main.command()
@_options
@_waiting_options
@click.option(
    "--policies",
    default=None,
    help=f"names, comma-separated, or all: {', '.join(POLICIES)}  [default: {', '.join(USUAL)}; behind a flow control those that hold nothing back]",
)
@click.option("--flow", "flow_names", default=NONE, show_default=True, help=f"as many of: {_FLOW_HELP}")
@click.option("--loads", default=None, help=f"multiples of --speedup, comma-separated; with --out: {_LOADS}")
@click.option("--out", type=click.Path(path_type=Path), help="folder for the picture and the figures")
@click.option("--json", "as_json", is_flag=True, help="a JSON array on standard output")
def compare(
    trace: Path | None,
    policies: str | None,
    flow_names: str,
    loads: str | None,
    out: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Replay a trace under several policies and flow controls; print a table, and draw latency over load."""
    flows = [_flow(name.strip(), options) for name in flow_names.split(",")]
    chosen = policies_named(policies or ",".join(USUAL))
    if policies is None and any(flow is not None for flow in flows):
        chosen = [each for each in chosen if each.bind is None]
    multiples = numbers("loads", loads or ("1" if out is None else _LOADS))
    cluster = _cluster(options)
    workload = _workload(trace, options)
    if out is not None:
        make_folder("out", out)  # before the replays: they may take minutes
    with progress_bar(show=not as_json) as bar:
        each = len(flows) * len(multiples)
        task = bar.add_task("comparing", total=len(chosen) * each * len(workload))

        def progress(done: int, total: int, arrived: int) -> None:
            name = chosen[min(done // each, len(chosen) - 1)].name
            bar.update(task, completed=done * len(workload) + arrived, description=f"{name} ({done + 1} of {total})")

        runs = compare_policies(workload, chosen, cluster, loads=multiples, flows=flows, progress=progress)
    records = [_record(workload, cluster, run) for run in runs]
    if as_json:
        print_json(records)
    else:
        load = 1.0 if 1.0 in multiples else multiples[0]
        _show(runs, title=_title(workload, cluster, load), load=load)
    if out is not None:
        picture = report.picture(runs, out / "latency-over-load.png", title=_title(workload, cluster))
        (out / "figures.json").write_bytes(msgspec.json.format(msgspec.json.encode(records)))
        if any(run.replay.waiting is not None for run in runs):
            drawn = report.waiting_picture(runs, out / "waiting-over-load.png", title=_title(workload, cluster))
            errors.print(f"picture: {drawn}", markup=False, soft_wrap=True)
        errors.print(f"picture: {picture}\nfigures: {out / 'figures.json'}", markup=False, soft_wrap=True)


@main.command()
@_options
@click.option("--policy", "policy_name", default="gie-default", show_default=True, help=", ".join(POLICIES))
@click.option("--request", "place", default=100, show_default=True, help="which request of the trace, from 0")
@click.option("--json", "as_json", is_flag=True, help="one JSON object on standard output")
def explain(trace: Path | None, policy_name: str, place: int, as_json: bool, **options: Any) -> None:
    """Replay a trace up to one request, and say why it goes where it goes."""
    chosen = policy_named(policy_name)
    cluster = _cluster(options)
    workload = _workload(trace, options)
    if not 0 <= place < len(workload):
        raise InvalidInputError("request", place, f"0 to {len(workload) - 1}")
    if chosen.bind is not None:
        _explain_binding(LateSimulation(workload, chosen, cluster), place, as_json=as_json)
        return
    simulation = Simulation(workload, chosen, cluster)
    for _ in range(place):
        simulation.step()
    request, now = simulation.arrive()
    explanation = explain_decision(
        simulation.scheduler, request, simulation.pool.snapshot(), now=now / 1e3, rng=simulation.rng
    )
    if as_json:
        print_json(explanation.to_dict())
    else:
        click.echo(str(explanation))


def _explain_binding(simulation: LateSimulation, place: int, *, as_json: bool) -> None:
    """Say what a request would cost at each server when it comes, for a policy that holds requests back."""
    for _ in range(place):
        simulation.step()
    name, now = simulation.arrive()
    told = simulation.binder.explain(name, simulation.pool, now=now / 1e3)
    if as_json:
        servers = [each._asdict() | {"cost": each.cost} for each in told.servers]
        print_json(told._asdict() | {"servers": servers})
    else:
        click.echo(f"request {name!r}: {told}")


@main.command()
@click.option("--config", "path", required=True, type=click.Path(path_type=Path), help="the gateway's YAML file")
@click.option("--host", help="in the place of the file's")
@click.option("--port", type=click.IntRange(0, 65_535), help="in the place of the file's")
@click.option("--check", is_flag=True, help="read everything, serve nothing")
@guarded
def serve(path: Path, host: str | None, port: int | None, check: bool) -> None:
    """Serve an OpenAI-compatible gateway before model servers (extra ``gateway``)."""
    try:
        from uvicorn import run as serve_asgi  # noqa: PLC0415  of another extra

        from inferencesched.adapters.serve import gateway_of, read_gateway  # noqa: PLC0415  the same
    except ModuleNotFoundError as error:
        raise InvalidInputError("serve", error.name, "the extra gateway, which is not installed") from error
    try:
        document = read_gateway(path)
        application = gateway_of(document, path.parent)
    except OSError as error:
        raise InvalidInputError("config", str(error.filename), f"a readable file ({error.strerror})") from error
    if check:
        click.echo(
            f"{path}: {len(document.pools)} pools, {sum(len(pool.endpoints) for pool in document.pools)} endpoints"
        )
        return
    compile_kernels()
    drain = round(document.patience.drain)
    listen = document.listen
    serve_asgi(
        application,
        host=listen.host if host is None else host,
        port=listen.port if port is None else port,
        access_log=False,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=max(1, drain),
    )


@main.command()
def warmup() -> None:
    """Compile everything now, so that nothing compiles later: half a minute, once on a machine."""
    steps: list[Callable[[], object]] = [compile_kernels]
    few = generate(seed=0).head(20)
    steps += [partial(replay_trace, few, chosen, Cluster(servers=2)) for chosen in POLICIES.values()]
    steps.append(partial(replay_trace, few, POLICIES["round-robin"], Cluster(servers=2), flow=flow_named("fcfs")))
    with progress_bar(show=errors.is_terminal) as bar:
        for step in bar.track(steps, description="compiling"):
            step()


def _cluster(options: dict[str, Any]) -> Cluster:
    return Cluster(
        servers=options["servers"],
        engine=EngineConfig(kv_blocks=options["kv_blocks"], block_size=options["block_size"]),
        timing=timing_named(options["timing"]),
        speedup=options["speedup"],
        scrape_ms=options["scrape_ms"],
        answer_ms=options["answer_ms"],
        news_ms=options["news_ms"],
        seed=options["seed"],
    )


def _flow(name: str, options: dict[str, Any]) -> FlowControl | None:
    """Return the flow control of this name, or that of a file."""
    path = Path(name)
    if path.suffix == ".json":
        return configured_flow(path.stem, partial(_gateway_json, path))
    if path.suffix in (".yaml", ".yml"):
        return configured_flow(path.stem, partial(_gateway_yaml, path))
    queueing = Queueing(
        capacity=options["capacity"] or None,
        band_capacity=options["band_capacity"] or None,
        ttl=options["ttl"] or None,
        queue_depth=options["queue_depth"],
    )
    return flow_named(name, queueing)


def _gateway_json(path: Path) -> Loaded[Document]:
    try:
        raw = msgspec.json.decode(_bytes(path), type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInputError("flow", str(path), f"a JSON object ({error})") from error
    return _gateway(path, load_config(raw))


def _gateway_yaml(path: Path) -> Loaded[Document]:
    try:
        from inferencesched.adapters.yaml import read_text  # noqa: PLC0415  an extra of its own
    except ModuleNotFoundError as error:
        raise InvalidInputError("flow", str(path), "a JSON file, where the extra yaml is not installed") from error
    try:
        text = _bytes(path).decode()
    except UnicodeDecodeError as error:
        raise InvalidInputError("flow", str(path), f"a YAML file in UTF-8 ({error})") from error
    return _gateway(path, read_text(text, source=str(path)))


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInputError("flow", str(path), f"a readable file ({error.strerror})") from error


def _gateway(path: Path, loaded: Loaded[Document] | Loaded[SchedulerDocument]) -> Loaded[Document]:
    document = loaded.effective
    if not isinstance(document, Document):
        raise InvalidInputError("flow", str(path), "an EndpointPickerConfig: another kind has no flowControl section")
    return cast("Loaded[Document]", loaded)


def _workload(trace: Path | None, options: dict[str, Any]) -> Workload:
    workload = _untagged(trace, options)
    mix = options.get("tenants")
    return workload if mix is None else workload.tagged(tenants_named(mix), seed=options["seed"])


def _untagged(trace: Path | None, options: dict[str, Any]) -> Workload:
    if trace is None:
        return generate(seed=options["seed"])
    try:
        return read_trace(trace)
    except TraceError as error:
        if options["partial"] and error.lines_read:
            warning = f"warning: {error}; replaying the {error.lines_read} requests before it"
            errors.print(warning, markup=False, soft_wrap=True)
            workload: Workload = error.workload
            return workload
        raise


def _record(workload: Workload, cluster: Cluster, run: Run) -> dict[str, object]:
    """Return the figures with what they were measured on; unknown numbers are null."""
    replay: Replay = run.replay
    record: dict[str, object] = {
        "policy": replay.policy,
        "trace": workload.name,
        "workers": cluster.servers,
        "blocks": cluster.engine.kv_blocks,
        "block_size": cluster.engine.block_size,
        "timing": cluster.timing.name,
        "speed": cluster.speedup * run.load,
        "scrape_ms": cluster.scrape_ms,
        "answer_ms": cluster.answer_ms,
        "news_ms": cluster.news_ms,
        "seed": cluster.seed,
    }
    record |= {key: value if isfinite(value) else None for key, value in replay.figures.items()}
    if replay.waiting is not None:
        record |= {"flow": replay.flow, "waiting": replay.waiting.to_dict()}
    took = replay.decision_us_p50
    return record | {"decision_us_p50": took if isfinite(took) else None, "wall_s": replay.wall_s}


def _show(runs: Sequence[Run], *, title: str, load: float = 1.0) -> None:
    """Print the table of policies, and that of tenants and priorities if there are any."""
    out = screen()
    out.print(report.table(runs, title=title, load=load))
    groups = report.waiting_table(runs, load=load)
    if groups is not None:
        out.print(groups)


def _title(workload: Workload, cluster: Cluster, load: float = 1.0) -> str:
    return (
        f"{workload.name}: {len(workload):,} requests x{cluster.speedup * load:g} on {cluster.servers} servers of "
        f"{cluster.engine.kv_blocks:,} x {cluster.engine.block_size} tokens, {cluster.timing.name}"
    )


main.add_command(sweep)
main.add_command(calibrate)

__all__ = ["main"]
