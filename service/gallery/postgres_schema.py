"""The tables in PostgreSQL, in a schema of their own, and how they come to be.

    collection  one row for each that holds a face: the model that made them, and counters
    subject     `uid` never changes and keys the ids of its faces
    face        `embedding` may have any dimension: collections differ in their models

Every transaction that changes a collection locks its row first, and none but a bulk one locks two. So counters are right, the last
face takes its subject and collection along while nobody adds another, and there is nothing to deadlock on.
"""

from service.errors import GalleryUnavailable, SettingInvalid
from service.gallery.postgres_pool import SCHEMA, Pool, ServerError, Session

LOCK = 0x76697367616C00
"""Advisory locks: this one while the schema changes, the next ones for bulk work and for building indexes."""
BULK_LOCK, INDEX_LOCK = LOCK + 1, LOCK + 2
MIN_PGVECTOR = (0, 8)

MIGRATIONS = (
    f"""
    CREATE TABLE {SCHEMA}.collection (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        name text COLLATE "C" NOT NULL UNIQUE,
        model_name text NOT NULL,
        model_version text NOT NULL,
        model_digest text NOT NULL,
        model_method text NOT NULL,
        dimension integer NOT NULL,
        subjects bigint NOT NULL DEFAULT 0,
        faces bigint NOT NULL DEFAULT 0
    ) WITH (fillfactor = 50);
    CREATE TABLE {SCHEMA}.subject (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        collection bigint NOT NULL REFERENCES {SCHEMA}.collection,
        name text COLLATE "C" NOT NULL,
        uid text NOT NULL DEFAULT replace(gen_random_uuid()::text, '-', ''),
        created_at timestamptz NOT NULL,
        updated_at timestamptz NOT NULL,
        UNIQUE (collection, name)
    );
    CREATE TABLE {SCHEMA}.face (
        id bigint GENERATED ALWAYS AS IDENTITY,
        subject bigint NOT NULL REFERENCES {SCHEMA}.subject,
        collection bigint NOT NULL,
        face_id bytea NOT NULL,
        x1 double precision NOT NULL,
        y1 double precision NOT NULL,
        x2 double precision NOT NULL,
        y2 double precision NOT NULL,
        quality json NOT NULL,
        enrolled_at timestamptz NOT NULL,
        embedding vector NOT NULL,
        PRIMARY KEY (subject, face_id)
    );
    ALTER TABLE {SCHEMA}.face ALTER COLUMN embedding SET STORAGE MAIN;
    CREATE INDEX face_collection ON {SCHEMA}.face (collection);
    """,
)
"""Each brings the schema one version further. What was released is never edited."""
_RELATION = f"SELECT to_regclass('{SCHEMA}.schema_version') IS NOT NULL"
_VERSION = f"SELECT coalesce(max(version), 0) FROM {SCHEMA}.schema_version"
_PGVECTOR = """
SELECT e.extversion, quote_ident(n.nspname)
FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE extname = 'vector'
"""


def migrate(pool: Pool) -> None:
    """Bring the schema up to date, in one transaction; of several processes one does it while the others wait.

    Raises GalleryUnavailable where that is not allowed or pgvector is missing, SettingInvalid where a newer release made it.
    """
    if pool.read(_version) == len(MIGRATIONS):
        return
    session = pool.open()
    try:
        with pool.named():
            session.transaction(lambda session: _upgrade(session, pool))
    finally:
        session.close()
    pool.close()  # what was connected before does not know where the type `vector` lies


def _version(session: Session) -> int:
    """0: nothing is there yet."""
    if not session.simple(_RELATION)[0][0]:
        return 0
    version = int(session.simple(_VERSION)[0][0])
    if version > len(MIGRATIONS):
        raise SettingInvalid(
            f"the gallery's database has schema {version}, made by a newer release; this one knows {len(MIGRATIONS)}: "
            "update vision-service"
        )
    return version


def _upgrade(session: Session, pool: Pool) -> None:
    session.simple(f"SELECT pg_advisory_xact_lock({LOCK})")
    version = _version(session)
    _check_server(session, pool)
    session.simple(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}; CREATE TABLE IF NOT EXISTS {SCHEMA}.schema_version (version integer)")
    for number, statements in enumerate(MIGRATIONS[version:], version + 1):
        session.simple(statements)
        session.rows(f"INSERT INTO {SCHEMA}.schema_version VALUES (:number)", number=number)


def _check_server(session: Session, pool: Pool) -> None:
    encoding = session.simple("SHOW server_encoding")[0][0]
    if encoding != "UTF8":
        raise GalleryUnavailable(f"{pool.target} keeps text as {encoding}; make it anew: createdb --encoding=UTF8", retry_after=30)
    if not session.simple(_PGVECTOR):
        try:
            session.simple("CREATE EXTENSION vector")
        except ServerError as error:
            raise GalleryUnavailable(
                f"{pool.target} has no pgvector: {error.message}; install it on the server (the image pgvector/pgvector has it), "
                "then type there, as a superuser: CREATE EXTENSION vector",
                retry_after=30,
            ) from None
    version, where = session.simple(_PGVECTOR)[0]
    if tuple(int(part) for part in version.split(".")[:2]) < MIN_PGVECTOR:
        raise GalleryUnavailable(
            f"{pool.target} has pgvector {version}; 0.8 is needed: update it, then type there: ALTER EXTENSION vector UPDATE",
            retry_after=30,
        )
    session.simple(f"SET LOCAL search_path = {SCHEMA}, {where}")
