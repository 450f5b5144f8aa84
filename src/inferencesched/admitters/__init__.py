"""Which request may go at all, seeing the servers? Plug-ins that deny."""
