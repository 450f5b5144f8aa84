"""The cellar: everything compiled, and the only place numba is imported."""
