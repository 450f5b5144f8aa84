"""How does pytest hear of ``--inferencesched``?

A package of its own, because importing anything of `inferencesched` imports all of it: whoever does not ask for the checks waits
for nothing. `inferencesched.testing.pytest_plugin` does the work.
"""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the flag and the ini options."""
    group = parser.getgroup("inferencesched")
    group.addoption(
        "--inferencesched",
        action="store_true",
        help="check the project's scheduling plug-ins: installed ones, and those of inferencesched_plugins",
    )
    parser.addini(
        "inferencesched_check", "check the project's plug-ins whenever no test is named", type="bool", default=False
    )
    parser.addini("inferencesched_plugins", "module:name of plug-ins, or of lists of them", type="args", default=[])
    parser.addini("inferencesched_examples", "module:name of {type: [parameters, ...]}", type="string", default="")


def pytest_configure(config: pytest.Config) -> None:
    """Load the other half where it was asked for."""
    asked = config.getoption("--inferencesched")
    if not asked and config.getini("inferencesched_check"):
        asked = config.args_source is not pytest.Config.ArgsSource.ARGS
    if asked:
        from inferencesched.testing.pytest_plugin import Checks  # noqa: PLC0415  # only where it was asked for

        config.pluginmanager.register(Checks(), "inferencesched-checks")
