"""Which of the two forms is this configuration in?

``kind`` says so: ``EndpointPickerConfig`` is llm-d's, ``Scheduler`` the library's own.
"""

from collections.abc import Mapping
from typing import Any, Literal

from inferencesched.config import native, picker_config
from inferencesched.config.decode import NOTHING, found
from inferencesched.config.document import KIND, Document
from inferencesched.config.loaded import Loaded
from inferencesched.config.native import SchedulerDocument
from inferencesched.config.registry import Registry
from inferencesched.config.schema import native_schema, picker_config_schema
from inferencesched.errors import ConfigError
from inferencesched.scheduler import Scheduler


def load(
    raw: Mapping[str, Any] | None = None,
    *,
    registry: Registry | None = None,
    allow_experimental: bool | None = None,
    keep: Scheduler | None = None,
) -> Loaded[Document] | Loaded[SchedulerDocument]:
    """What does this configuration mean, whichever form it is in? None is llm-d's default.

    `registry` says which types there are, the library's own without it. `allow_experimental` is about the types that llm-d calls alpha:
    by default its own form refuses them, as it does, and the library's takes them. `keep` is a running scheduler, whose
    producers go on where their configuration is the same.

    Errors: `ConfigError`, one, with the path of what is wrong, what was found, and what is allowed. Nothing has changed then.

    >>> loaded = load({"apiVersion": "inferencesched/v1", "kind": "Scheduler",
    ...                "profiles": {"default": {"scorers": ["queue-scorer"]}}})
    >>> loaded.profiles["default"].picker
    MaxScorePicker(count=1)
    """
    if isinstance(raw, Mapping) and raw.get("kind") == native.KIND:
        allowed = True if allow_experimental is None else allow_experimental
        return native.load(raw, registry=registry, allow_experimental=allowed, keep=keep)
    if raw is not None and (not isinstance(raw, Mapping) or raw.get("kind") != KIND):
        what = raw.get("kind") if isinstance(raw, Mapping) else raw
        path = "$.kind" if isinstance(raw, Mapping) else "$"
        raise ConfigError(path, NOTHING if what is None else found(what), f"a mapping of kind {KIND} or {native.KIND}")
    return picker_config.load(raw, registry=registry, allow_experimental=bool(allow_experimental), keep=keep)


def build(
    raw: Mapping[str, Any] | None = None, *, registry: Registry | None = None, allow_experimental: bool | None = None
) -> Scheduler:
    """Which scheduler is this? `load`, and then `Loaded.scheduler`: for who has no use for the remarks."""
    return load(raw, registry=registry, allow_experimental=allow_experimental).scheduler()


def dump(
    what: Loaded[Document] | Loaded[SchedulerDocument] | Document | SchedulerDocument, *, effective: bool = False
) -> dict[str, Any]:
    """Return a configuration as a mapping that `load` reads: as it was said, or with all defaults (`effective`)."""
    said = (what.effective if effective else what.document) if isinstance(what, Loaded) else what
    return native.dump(said) if isinstance(said, SchedulerDocument) else picker_config.dump(said)


def schema(
    form: Literal["EndpointPickerConfig", "Scheduler"] = "EndpointPickerConfig", *, registry: Registry | None = None
) -> dict[str, Any]:
    """Return the JSON Schema of a form, for an editor.

    >>> schema("Scheduler")["title"]
    'Scheduler'
    """
    return native_schema(registry) if form == native.KIND else picker_config_schema(registry)
