"""What else must be known before scoring? One file a family; the prefix index's own producers are in `prefix`."""

__all__: list[str] = []
