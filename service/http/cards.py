"""What the gallery's routes take as options, and what they answer."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field

from service.errors import InputError
from service.gallery.gallery import StoredFace, Subject
from service.gallery.names import DEFAULT, check_name
from service.tasks.people import CollectionName, EnrollAnswer, EnrollOptions
from service.tasks.task import Box, Strict

COLLECTION = EnrollOptions.model_fields["gallery"].description


def _checked(text: str) -> str:
    """As it is kept; pydantic tells which option it was."""
    try:
        return check_name("the name", text)
    except InputError as error:
        raise ValueError(str(error)) from None


Name = Annotated[str, AfterValidator(_checked)]


class InGallery(Strict):
    gallery: CollectionName = Field(DEFAULT, description=COLLECTION)


class ListOptions(InGallery):
    after: Name | None = Field(None, description="give the subjects whose names come after this one: `after` of the page before")
    limit: int = Field(100, ge=1, le=1000, description="most subjects of a page")


class RenameOptions(InGallery):
    subject: Name = Field(description="the new name")


class SubjectCard(BaseModel):
    """One subject in a list."""

    subject: str
    faces: int = Field(description="how many faces it has")
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, subject: Subject) -> "SubjectCard":
        times = {"created_at": subject.created_at, "updated_at": subject.updated_at}
        return cls(subject=subject.name, faces=subject.faces, **times)


class Subjects(BaseModel):
    """Answer of GET /subjects."""

    gallery: str
    subjects: list[SubjectCard] = Field(description="in the order of their names' code points")
    subjects_total: int = Field(description="of the whole gallery")
    faces_total: int = Field(description="of the whole gallery")
    after: str | None = Field(description="what to ask the next page with; null: this is the last")
    next: str | None = Field(description="path and query of the next page; null: this is the last")


class FaceCard(BaseModel):
    """One face as it is kept: of the photo nothing but this and the embedding."""

    face_id: str
    box: Box = Field(description="where it was on its photo")
    quality: dict[str, Any] = Field(description="as it was answered when the face was enrolled")
    enrolled_at: datetime

    @classmethod
    def of(cls, face: StoredFace) -> "FaceCard":
        box = Box(**dict(zip(Box.model_fields, face.box, strict=True)))
        return cls(face_id=face.face_id, box=box, quality=dict(face.quality), enrolled_at=face.enrolled_at)


class Embedder(BaseModel):
    """The model that made the embeddings."""

    name: str
    version: str
    digest: str = Field(description="SHA-256 of the weights")
    method: str = Field(description="how a photo becomes what the model sees")
    dimension: int = Field(description="numbers of an embedding")


class RenamedSubject(SubjectCard):
    """Answer of PATCH /subjects/{subject}."""

    gallery: str


class FullSubject(BaseModel):
    """Answer of GET /subjects/{subject}."""

    gallery: str
    subject: str
    created_at: datetime
    updated_at: datetime
    model: Embedder
    faces: list[FaceCard] = Field(description="oldest first")


class ForgottenSubject(BaseModel):
    """Answer of DELETE /subjects/{subject}."""

    gallery: str
    subject: str
    faces: int = Field(description="how many faces were forgotten")


class ForgottenFace(BaseModel):
    """Answer of DELETE /subjects/{subject}/faces/{face_id}."""

    gallery: str
    subject: str
    face_id: str
    faces: int = Field(description="how many faces the subject has left; with its last one the subject is gone")


SHOWN: tuple[type[BaseModel], ...] = (EnrollAnswer, Subjects, FullSubject, RenamedSubject, ForgottenSubject, ForgottenFace)
"""The models of all answers."""
