"""Slow, obvious twins: a disaggregated request from top to bottom, and the best pair of two servers by trying all."""


def walk(order, configured, outcomes, prefill, encode):
    """Run the stages one after the other, as the rules say, without a loop that asks what is next.

    `outcomes` maps a stage to the names that its profile picks, best first; none is a failure. `prefill` and `encode` are what
    their deciders say of the decode server's name, None for no decider. Returns which stages ran, in order, whom each had as
    its peer, and what is left in the end: None where nobody decodes.
    """
    ran, peers = [], {}

    def run(stage, peer=""):
        ran.append(stage)
        peers[stage] = peer
        return outcomes[stage]

    decoded = prefilled = encoded = ()
    if order == "decode-first":
        decoded = run("decode")
        if decoded and "encode" in configured and encode is not None and encode(decoded[0]):
            encoded = run("encode")
        if decoded and "prefill" in configured and prefill is not None and prefill(decoded[0]):
            prefilled = run("prefill", decoded[0])
    else:
        if "prefill" in configured:
            prefilled = run("prefill")
        if "encode" in configured and encode is not None and encode(None):
            encoded = run("encode")
        decoded = run("decode", prefilled[0] if prefilled else "")
    if not decoded:
        return ran, peers, None
    found = {"decode": decoded, "prefill": prefilled, "encode": encoded}
    return ran, peers, {stage: names for stage, names in found.items() if names}


def best_pair(prefill, decode, wanted, transfer, weights):
    """Try every pair of two different servers; return the places of the first best, decode's order before prefill's.

    `prefill` and `decode` are lists of (name, score); `wanted(name)` says whether prefill is worth it for a decode server;
    `transfer(p, d)` is a number; `weights` are those of prefill, decode and transfer. None where there is no pair.
    """
    best, found = None, None
    for j, (server, score) in enumerate(decode):
        for i, (other, theirs) in enumerate(prefill):
            if server == other or not wanted(server):
                continue
            value = weights[1] * score + weights[0] * theirs + weights[2] * transfer(other, server)
            if best is None or value > best:
                best, found = value, (i, j)
    return found


def nearness(one, other, worth):
    """What is the nearest level worth that both name alike? `one` and `other` map a level's label to a name."""
    for label, value in worth:
        if one.get(label) and one.get(label) == other.get(label):
            return value
    return 0.0
