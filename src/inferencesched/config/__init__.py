"""How does a configuration become a scheduler, and a scheduler a configuration?

Two forms: llm-d's ``EndpointPickerConfig`` (`picker_config`), read as it stands, and the library's own (`native`), which says the same in
place and can say more. `load` and `dump` take either; `inferencesched.adapters.yaml` has them from and to files.
"""

from inferencesched.config.document import Document, Remark
from inferencesched.config.flow_control import flow_controller, flow_settings
from inferencesched.config.forms import build, dump, load, schema
from inferencesched.config.graph import Node, dependencies, in_turn
from inferencesched.config.installed import installed_plugins, with_installed
from inferencesched.config.loaded import Loaded
from inferencesched.config.native import SchedulerDocument, dump_scheduler
from inferencesched.config.registry import GATES, Registry
from inferencesched.config.spec import (
    Kind,
    Need,
    Nothing,
    Opaque,
    Parameters,
    PluginRef,
    PluginSpec,
    Stability,
    Workshop,
)

__all__ = [
    "GATES",
    "Document",
    "Kind",
    "Loaded",
    "Need",
    "Node",
    "Nothing",
    "Opaque",
    "Parameters",
    "PluginRef",
    "PluginSpec",
    "Registry",
    "Remark",
    "SchedulerDocument",
    "Stability",
    "Workshop",
    "build",
    "dependencies",
    "dump",
    "dump_scheduler",
    "flow_controller",
    "flow_settings",
    "in_turn",
    "installed_plugins",
    "load",
    "schema",
    "with_installed",
]
