"""Who may take a request? One file a family."""

from inferencesched.filters.load import UtilizationFilter

__all__ = ["UtilizationFilter"]
