"""Heavy tests with real parts: `make e2e` makes the environments they need and runs them."""
