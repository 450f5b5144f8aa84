"""Slow, obvious twins of what latencies are scored, filtered and learnt by. Plain Python numbers."""

import math


def latency_scores(scorer, endpoints):
    """What `LatencyScorer` says: each endpoint is a dict of ttft, tpot (None where not predicted), inflight, kv, queue, match."""
    if all(e["ttft"] is None or e["tpot"] is None for e in endpoints):
        return composite(scorer, endpoints)
    told = [(0.0, 0.0) if e["ttft"] is None or e["tpot"] is None else (e["ttft"], e["tpot"]) for e in endpoints]
    groups = {"fit": [], "slow": [], "late": [], "both": []}
    for i, (ttft, tpot) in enumerate(told):
        name = {(False, False): "fit", (False, True): "slow", (True, False): "late", (True, True): "both"}
        groups[name[(ttft < 0, tpot < 0)]].append(i)
    most = False
    if groups["fit"]:
        chosen, most = groups["fit"], scorer.headroom_selection_strategy == "most"
    else:
        idle = [i for i, e in enumerate(endpoints) if e["inflight"] == 0]
        chosen = idle or groups["slow"] or groups["late"] or groups["both"]
    return bucket(scorer, told, chosen, most)


def bucket(scorer, told, chosen, most):
    scores = [0.0] * len(told)
    weights = scorer.ttft_weight + scorer.tpot_weight
    alpha, beta = (scorer.ttft_weight / weights, scorer.tpot_weight / weights) if weights > 0 else (1.0, 0.0)
    sizes = [[abs(told[i][k]) for i in chosen] for k in (0, 1)]
    ranges = [max(each) - min(each) for each in sizes]
    if ranges[0] <= 1e-9 < ranges[1]:
        alpha, beta = 0.0, 1.0
    if ranges[1] <= 1e-9 < ranges[0]:
        alpha, beta = 1.0, 0.0
    for at, i in enumerate(chosen):
        parts = [(sizes[k][at] - min(sizes[k])) / ranges[k] if ranges[k] > 1e-9 else 0.5 for k in (0, 1)]
        c = alpha * parts[0] + beta * parts[1]
        scores[i] = min(1.0, (int((c if most else 1.0 - c) * 100) + 1) / 100)
    return scores


def composite(scorer, endpoints):
    weights = (scorer.composite_kv_weight, scorer.composite_queue_weight, scorer.composite_prefix_weight)
    total = sum(weights)
    kv, queue, prefix = (w / total for w in weights) if total > 0 else (1.0, 0.0, 0.0)
    longest = max([0.0, *(e["queue"] for e in endpoints if e["queue"] is not None)])
    scores = []
    for e in endpoints:
        free = 0.0 if e["kv"] is None else 1.0 - e["kv"]
        short = 0.0 if e["queue"] is None else (longest - e["queue"]) / longest if longest else 1.0
        mean = kv * free + queue * short + prefix * (e["match"] or 0.0)
        scores.append(min(1.0, math.floor(100 * mean + 0.5) / 100))
    return scores


def sticky(plugin, shares, ttfts, drawn):
    """Whom `PrefixCacheAffinityFilter` keeps; `ttfts` in ms, None where it is unknown."""
    everybody = [True] * len(shares)
    if len(shares) <= 1 or plugin.affinity_threshold <= 0 or drawn < plugin.exploration_probability:
        return everybody
    keep = [(share or 0.0) >= plugin.affinity_threshold for share in shares]
    if not any(keep):
        return everybody
    if plugin.max_ttft_penalty_ms > 0 and not all(keep):
        best = {
            side: min((math.inf if t is None else t) for t, k in zip(ttfts, keep, strict=True) if k is side)
            for side in (True, False)
        }
        if best[True] - best[False] > plugin.max_ttft_penalty_ms:
            return everybody
    return keep


def residency(report, name):
    """The tier of an adapter on one server, or None where the server does not tell its slots."""
    if report is None or not report.slots:
        return None
    if name in report.loaded:
        return 1.0
    if name in report.offloaded:
        return 0.7
    if len(report.loaded) < report.slots:
        return 0.6
    busy = report.running | report.waiting
    return 0.3 if any(adapter not in busy for adapter in report.loaded) else 0.0
