"""Faces that are known by name, on a real database: SQLite for one machine, PostgreSQL with pgvector for several.

service.gallery.gallery has the protocol and says what is promised.
"""

from pathlib import Path

from service.errors import GalleryMismatch, SettingInvalid
from service.gallery.gallery import EmbeddingModel, Gallery
from service.settings import Settings

FILE = "gallery.sqlite3"
"""The default database, in the data folder."""


def open_gallery(settings: Settings, model: EmbeddingModel) -> Gallery:
    """The database that the settings name, made where there is none yet, its schema brought up to date.

    Raises SettingInvalid for a URL of another kind, RuntimeMissing where its driver is not installed, GalleryUnavailable where it
    cannot be opened. Collections of another model are no error yet; see check_models.
    """
    url = "" if settings.gallery_url is None else settings.gallery_url.get_secret_value()
    scheme, _, rest = url.partition("://")
    if not url or scheme == "sqlite":
        from service.gallery.sqlite import SqliteGallery

        return SqliteGallery(_path(rest) if url else settings.data_folder / FILE, model)
    if scheme in {"postgresql", "postgres"}:
        from service.gallery.postgres import PostgresGallery

        return PostgresGallery(url, model)
    raise SettingInvalid(
        "VISION_GALLERY_URL is none that is known; use sqlite:///path/to/file or postgresql://user:password@host/name"
    )


def check_models(gallery: Gallery) -> None:
    """Raises GalleryMismatch for the first collection that another model made."""
    for collection in gallery.collections():
        if collection.model != gallery.model:
            raise GalleryMismatch(collection.name, collection.model, gallery.model)


def _path(rest: str) -> Path:
    path = Path("/" + rest.lstrip("/")) if rest.startswith("/") else Path(rest)
    if not path.name:
        raise SettingInvalid("VISION_GALLERY_URL names no file; use sqlite:///path/to/file")
    return path.absolute()
