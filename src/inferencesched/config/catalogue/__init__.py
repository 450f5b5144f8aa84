"""Which plug-ins does a configuration know by name? One file a family, each with its ``SPECS``."""
