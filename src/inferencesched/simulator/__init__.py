"""Trying policies: the scheduler of a gateway, on simulated time, arrivals and servers."""
