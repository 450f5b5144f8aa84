"""Do the strategies draw what the library can meet, all of it, and nothing else?"""

import numpy as np
import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

import inferencesched as isched
from inferencesched.testing import strategies
from inferencesched.testing.scenes import NOW

OWN = isched.Signal("own", "celsius", low=-20.0, high=80.0)


@settings(max_examples=30)
@given(strategies.endpoints(signals=(OWN,)))
def test_snapshots_hold_what_their_signals_allow(endpoints):
    assert 1 <= len(endpoints) <= 8 and len(set(endpoints.names)) == len(endpoints) == len(
        set(endpoints.slots.tolist())
    )
    for signal in endpoints.layout.signals:
        column = endpoints[signal]
        known = column[~np.isnan(column)]
        assert ((known >= signal.low) & (known <= signal.high)).all(), signal
        assert signal.freshness != "local" or len(known) == len(column)
    assert (endpoints.age(NOW) >= 0.0).all()
    for i in range(len(endpoints)):
        assert endpoints.hosts("a").sum() <= len(endpoints) and isinstance(endpoints.labels(i), dict)


@settings(max_examples=20)
@given(strategies.endpoints(unknown=False, min_size=2, max_size=3))
def test_nothing_unknown_where_that_is_asked(endpoints):
    assert 2 <= len(endpoints) <= 3 and not np.isnan(endpoints.matrix).any()
    assert np.isfinite(endpoints.age(NOW)).all()


@settings(max_examples=30)
@given(strategies.pools(signals=(OWN,)), strategies.requests(), strategies.cycles())
def test_pools_add_up_and_decide(pool, request, cycle):
    ledger = pool.ledger()
    assert ledger.reserved_requests == ledger.settled_requests + ledger.inflight_requests
    assert ledger.reserved_tokens == ledger.settled_tokens + ledger.inflight_tokens
    result = isched.Scheduler(isched.default_profile()).schedule(request, pool.snapshot(), now=cycle.now, rng=cycle.rng)
    assert result.endpoint in pool.names


@settings(max_examples=20)
@given(strategies.pools(reservations=False))
def test_pools_without_reservations(pool):
    assert pool.ledger().reserved_requests == 0


@settings(max_examples=30)
@given(st.sampled_from([*isched.STANDARD_SIGNALS, OWN]).flatmap(lambda s: st.tuples(st.just(s), strategies.values(s))))
def test_values(drawn):
    signal, value = drawn
    assert signal.low <= value <= signal.high or (value != value and signal.freshness != "local")


@pytest.mark.parametrize(
    ("strategy", "wish"),
    [
        (strategies.requests(), lambda r: r.prompt_tokens is None),
        (strategies.requests(), lambda r: r.tokens is not None and len(r.tokens) > 8),
        (strategies.requests(), lambda r: bool(r.block_hashes is not None and r.session_id and r.media)),
        (strategies.requests(), lambda r: bool(r.slo_ttft and r.headers)),
        (strategies.endpoints(), lambda e: e.positions is not None and len(e) < len(e.members.names)),
        (strategies.endpoints(), lambda e: bool(np.isnan(e[isched.WAITING_QUEUE_SIZE]).all())),
        (strategies.endpoints(), lambda e: bool(np.isinf(e.age(NOW)).any())),
        (strategies.endpoints(), lambda e: bool(e.hosts("a").any() and e.awaits("a").any())),
        (strategies.endpoints(), lambda e: bool(e.label("zone", "eu").any())),
        (strategies.pools(), lambda p: p.ledger().inflight_tokens > 0 and p.ledger().settled_requests > 0),
        (strategies.pools(), lambda p: "came-later" in p.names),
        (strategies.cycles(), lambda c: c.peer == "gone"),
    ],
)
def test_all_of_it_comes_along(strategy, wish):
    assert wish(find(strategy, wish, settings=settings(max_examples=2_000, derandomize=True, phases=[Phase.generate])))
