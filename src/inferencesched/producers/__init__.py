"""What else must be known before scoring? One file a family; the prefix index's own producers are in `prefix`."""

from inferencesched.producers.session import SessionBindingProducer, SessionReceipt

__all__ = [
    "SessionBindingProducer",
    "SessionReceipt",
]
