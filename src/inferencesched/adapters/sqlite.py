"""Where are a tenant's counters when several gateways of one machine share them, or one starts again?

`SqliteQuotas` keeps them in a file, by the standard library's sqlite3: in write-ahead mode, each `add` one transaction.
"""

import sqlite3
from collections.abc import Sequence
from types import TracebackType
from typing import Self, final


@final
class SqliteQuotas:
    """Counters in a file, for `inferencesched.governance.quotas.Quotas`.

    Several processes may use one file; each `add` is a transaction, all or nothing. Of two that reserve in the same moment both may find the
    same room: the sum is exact, a quota may be passed by what was reserved in that moment. `timeout` is how long one waits
    for another's transaction, seconds. Errors: `sqlite3.Error`; `Quotas.on_error` says what follows.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder, SqliteQuotas(f"{folder}/quotas.db") as store:
    ...     store.add([("acme", 1, 5), ("acme", 2, 7)], expires_at=9.0)
    ...     store.used("acme", [1, 2, 3])
    [5, 7, 0]
    """

    def __init__(self, path: str, *, timeout: float = 1.0) -> None:
        self._connection = sqlite3.connect(path, timeout=timeout, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS counters (name TEXT, period INTEGER, amount INTEGER NOT NULL, expires REAL NOT NULL, "
            "PRIMARY KEY (name, period)) WITHOUT ROWID"
        )

    def used(self, name: str, windows: Sequence[int]) -> list[int]:
        """Return the counters of these windows, 0 for unknown ones."""
        if not windows:
            return []
        rows = self._connection.execute(
            "SELECT period, amount FROM counters WHERE name = ? AND period BETWEEN ? AND ?",
            (name, min(windows), max(windows)),
        )
        found = dict(rows)
        return [found.get(window, 0) for window in windows]

    def add(self, changes: Sequence[tuple[str, int, int]], expires_at: float) -> None:
        """Add to several counters, all or none."""
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            connection.executemany(
                "INSERT INTO counters VALUES (?, ?, ?, ?) ON CONFLICT (name, period) DO UPDATE "
                "SET amount = amount + excluded.amount, expires = max(expires, excluded.expires)",
                [(*change, expires_at) for change in changes],
            )
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

    def sweep(self, now: float) -> int:
        """Forget counters that nobody asks for any more; return how many."""
        return self._connection.execute("DELETE FROM counters WHERE expires <= ?", (now,)).rowcount

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
