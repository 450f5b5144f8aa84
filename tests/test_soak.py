"""Does anything stay behind? The soak of two million requests, a short one."""

from tests.soak.soak_director import Soak


def test_after_a_few_thousand_requests_every_counter_is_at_zero():
    soak = Soak(seed=5)
    soak.run(4_000)
    met = {
        "forwarded",
        "completed",
        "cancelled",
        "failed",
        "bad_body",
        "evicted_cancelled",
        "evicted_ttl",
    }
    assert met <= set(soak.ends), met - set(soak.ends)
