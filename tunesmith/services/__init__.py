"""Use cases over the store: the only room where its records meet the domain's rules. Knows no HTTP and no torch."""

from __future__ import annotations

from dataclasses import dataclass

from tunesmith.settings import Settings
from tunesmith.store.blobs import Blobs
from tunesmith.store.database import Database


@dataclass(frozen=True)
class Context:
    """What every use case works on."""

    settings: Settings
    db: Database
    blobs: Blobs

    def close(self) -> None:
        """Close the database's connections."""
        self.db.close()


def open(settings: Settings) -> Context:
    """Open the deployment's database and files, both made if they are not there.

    Raises: InvalidRequest for a database URL of another kind, Unavailable when the database cannot be opened.
    """
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    blobs = Blobs(settings.data_dir / "files")
    blobs.sweep()
    return Context(settings, Database.open(settings.database), blobs)
