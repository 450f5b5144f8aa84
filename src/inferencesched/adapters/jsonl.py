"""Where do audit records go? Into a file, a line of JSON each."""

import os
from pathlib import Path
from types import TracebackType
from typing import Final, Self, final

import msgspec

from inferencesched.errors import InvalidInputError
from inferencesched.governance.audit import AuditRecord

_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final = msgspec.json.Decoder(AuditRecord)


@final
class JsonlAudit:
    """Records in a file, appended a line at a time, each in one write: several processes may share it.

    With `max_bytes` a file that has grown beyond it is put aside as ``NAME.1``, and those before it one further, `keep` of them. `sync`
    waits until the disk has each line. Errors: `OSError` of the file.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     with JsonlAudit(f"{folder}/audit.jsonl") as sink:
    ...         sink.write(AuditRecord(request_id="r", received_at=1.0, ended_at=2.0, outcome="completed"))
    ...     [record.outcome for record in read_jsonl(f"{folder}/audit.jsonl")]
    ['completed']
    """

    def __init__(self, path: str | Path, *, max_bytes: int | None = None, keep: int = 5, sync: bool = False) -> None:
        if max_bytes is not None and max_bytes < 1:
            raise InvalidInputError("max_bytes", max_bytes, "an integer of at least 1, or None")
        if keep < 1:
            raise InvalidInputError("keep", keep, "an integer of at least 1")
        self.path = Path(path)
        self.max_bytes = max_bytes
        self.keep = keep
        self.sync = sync
        self._file = self._opened()

    def write(self, record: AuditRecord) -> None:
        """Append a record."""
        os.write(self._file, _ENCODER.encode(record) + b"\n")
        if self.sync:
            os.fsync(self._file)
        if self.max_bytes is not None and os.fstat(self._file).st_size > self.max_bytes:
            self._turn()

    def close(self) -> None:
        """Let go of the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _opened(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def _turn(self) -> None:
        """Put the file aside and begin another."""
        os.close(self._file)
        for number in range(self.keep, 0, -1):
            older = self.path.with_name(f"{self.path.name}.{number - 1}") if number > 1 else self.path
            if older.exists():
                older.replace(self.path.with_name(f"{self.path.name}.{number}"))
        self._file = self._opened()


def read_jsonl(path: str | Path) -> list[AuditRecord]:
    """Return the records of a file. Errors: `msgspec.ValidationError` for a line that is none."""
    with Path(path).open("rb") as lines:
        return [_DECODER.decode(line) for line in lines if line.strip()]
