"""Every error that a caller can meet, named once.

An error says what was wrong and what would be right. `code` is stable: clients may switch on it. Nothing here knows HTTP;
`service.http.problems` maps each class to a status in one table.

    VisionError
      InputError              the caller can mend it
        ImageMissing  NotAnImage  ImageDamaged  ImageTooSmall  TooManyPixels  BodyTooLarge  MalformedBody
        UnsupportedMedia  NotAcceptable  OptionInvalid  ModelUnknown  StyleUnknown  NoFace  SeveralFaces
        ModelRefused  ModelUnclear  ModelExists  ModelFixed
        FaceTooSmall  FaceBlurred  EnrollmentRefused  SubjectUnknown  FaceUnknown  SubjectExists
        JobUnknown  JobUnfinished
      Busy                    the caller may try again
        QueueFull  QueueTimeout  DeadlineExceeded  NotReady  GalleryUnavailable
      InferenceFailed         a model run failed
      SetupError              the operator can mend it; met before or while starting, never in a request
        SettingInvalid  RuntimeMissing  DeviceUnavailable  SpecInvalid  FetchFailed  DigestMismatch  LicenceNotAccepted
        ExportFailed  ParityFailed  GalleryMismatch
"""

from collections.abc import Mapping, Sequence
from typing import Any


class VisionError(Exception):
    """Base of all errors raised on purpose. `code` is stable, the message is for people."""

    code = "internal"
    title = "Something went wrong inside the service"


class InputError(VisionError):
    """The request cannot be served as it is; the message says what would be right.

    `photo` names the image that it is about, as the caller named it, where that is known.
    """

    code = "input_invalid"
    title = "The request cannot be served as it is"
    photo: str | None = None


class ImageMissing(InputError):
    code = "image_missing"
    title = "An image is missing or empty"


class NotAnImage(InputError):
    code = "not_an_image"
    title = "The file is not an image that can be read"


class ImageDamaged(InputError):
    code = "image_damaged"
    title = "The image is damaged or cut short"


class ImageTooSmall(InputError):
    code = "image_too_small"
    title = "The image is too small to use"


class TooManyPixels(InputError):
    code = "too_many_pixels"
    title = "The image has too many pixels"


class BodyTooLarge(InputError):
    code = "body_too_large"
    title = "The request body is too large"


class MalformedBody(InputError):
    code = "body_malformed"
    title = "The request body cannot be parsed"


class UnsupportedMedia(InputError):
    code = "media_type_unsupported"
    title = "The request's content type is not supported"


class NotAcceptable(InputError):
    code = "not_acceptable"
    title = "None of the accepted answer types can be given"


class OptionInvalid(InputError):
    """An option is unknown, of the wrong type or out of range.

    `option` is its name as the caller writes it; the message names the accepted range or values.
    """

    code = "option_invalid"
    title = "An option is not valid"

    def __init__(self, option: str, message: str) -> None:
        super().__init__(message)
        self.option = option


class ModelUnknown(InputError):
    """`known` are the names that would work for the task asked."""

    code = "model_unknown"
    title = "There is no such model"

    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(f"there is no model {name!r:.80} for this; use one of: {', '.join(known) or '(none loaded)'}")
        self.name = name
        self.known = tuple(known)


class ModelRefused(InputError):
    """A file that cannot be used as a model; the message says what was found and what is wanted."""

    code = "model_refused"
    title = "The file cannot be used as a model"


class ModelUnclear(InputError):
    """The file does not tell all that has to be known. `missing` are the options to give, with what each means in the message."""

    code = "model_unclear"
    title = "The file does not tell enough about the model"

    def __init__(self, message: str, missing: Sequence[str]) -> None:
        super().__init__(message)
        self.missing = tuple(missing)


class ModelExists(InputError):
    code = "model_exists"
    title = "There is a model of that name already"


class ModelFixed(InputError):
    """A model that comes with the service, or lies in a folder that cannot be written, is not to be changed."""

    code = "model_fixed"
    title = "The model cannot be changed"


class StyleUnknown(InputError):
    code = "style_unknown"
    title = "There is no such style"

    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(f"there is no style {name!r:.80}; use one of: {', '.join(known)}")
        self.name = name
        self.known = tuple(known)


class JobUnknown(InputError):
    code = "job_unknown"
    title = "There is no such job"

    def __init__(self, identity: str) -> None:
        super().__init__(f"there is no job {identity!r:.80} here: it may have been forgotten, or the service started anew since")


class JobUnfinished(InputError):
    code = "job_unfinished"
    title = "The job has no result"


class NoFace(InputError):
    """`photo` names the image without a face, as the caller named it ("image1", "image2")."""

    code = "no_face"
    title = "No face was found"

    def __init__(self, photo: str, message: str) -> None:
        super().__init__(message)
        self.photo = photo


class SeveralFaces(InputError):
    """`face=only` was asked for and `photo` shows `count` faces."""

    code = "several_faces"
    title = "More than one face was found"

    def __init__(self, photo: str, count: int) -> None:
        super().__init__(f"{photo} shows {count} faces but face=only was asked for; use face=prominent or face=largest")
        self.photo = photo
        self.count = count


class FaceTooSmall(InputError):
    """A face to enroll has `measured` pixels at its shorter side and needs `limit`."""

    code = "face_too_small"
    title = "The face is too small to be enrolled"

    def __init__(self, photo: str, measured: float, limit: float) -> None:
        super().__init__(
            f"the face in {photo} is {measured:.1f} pixels wide; {limit:g} are needed to be known again; send a larger one"
        )
        self.photo, self.measured, self.limit = photo, measured, limit


class FaceBlurred(InputError):
    """A face to enroll has a sharpness of `measured` and needs `limit`; see service.tasks.face_quality."""

    code = "face_blurred"
    title = "The face is too blurred to be enrolled"

    def __init__(self, photo: str, measured: float, limit: float) -> None:
        super().__init__(
            f"the face in {photo} has a sharpness of {measured:.4f}; {limit:g} is needed to be known again; send one in focus"
        )
        self.photo, self.measured, self.limit = photo, measured, limit


class EnrollmentRefused(InputError):
    """Of several photos, `refused` cannot be enrolled, so none was: for each its name, code and detail."""

    code = "enrollment_refused"
    title = "Some of the photos cannot be enrolled, so none was"

    def __init__(self, refused: Sequence[Mapping[str, Any]], photos: int) -> None:
        names = ", ".join(str(one["photo"]) for one in refused)
        super().__init__(f"{len(refused)} of {photos} photos cannot be enrolled: {names}; leave them out, or send partial=true")
        self.refused = tuple(refused)


class SubjectUnknown(InputError):
    code = "subject_unknown"
    title = "There is no such subject"

    def __init__(self, collection: str, name: str) -> None:
        super().__init__(f"there is no subject {name!r:.210} in the gallery {collection!r:.210}; GET /subjects lists them")


class FaceUnknown(InputError):
    code = "face_unknown"
    title = "There is no such face"

    def __init__(self, name: str, face_id: str) -> None:
        super().__init__(f"the subject {name!r:.210} has no face {face_id!r:.80}; GET /subjects/{{subject}} lists them")


class SubjectExists(InputError):
    code = "subject_exists"
    title = "There is a subject of that name already"

    def __init__(self, collection: str, name: str) -> None:
        super().__init__(f"the gallery {collection!r:.210} has a subject {name!r:.210} already; give another name")


class Busy(VisionError):
    """Nothing is wrong with the request; try again after `retry_after` seconds."""

    code = "busy"
    title = "The service is busy"

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QueueFull(Busy):
    code = "queue_full"
    title = "Too many requests are waiting"


class QueueTimeout(Busy):
    code = "queue_timeout"
    title = "The request waited too long for its turn"


class DeadlineExceeded(Busy):
    code = "deadline_exceeded"
    title = "The request took too long"


class NotReady(Busy):
    code = "not_ready"
    title = "The service is not ready"


class GalleryUnavailable(Busy):
    """The gallery's database does not answer, or cannot be written."""

    code = "gallery_unavailable"
    title = "The face gallery cannot be reached"


class InferenceFailed(VisionError):
    code = "inference_failed"
    title = "A model could not be run on this image"


class SetupError(VisionError):
    """Met by the operator before or while starting; the message says what to type next."""

    code = "setup"
    title = "The service is not set up"


class SettingInvalid(SetupError):
    code = "setting_invalid"


class RuntimeMissing(SetupError):
    code = "runtime_missing"


class DeviceUnavailable(SetupError):
    code = "device_unavailable"


class SpecInvalid(SetupError):
    code = "spec_invalid"


class FetchFailed(SetupError):
    code = "fetch_failed"


class DigestMismatch(FetchFailed):
    code = "digest_mismatch"


class LicenceNotAccepted(SetupError):
    """The licence of a public model forbids commercial use, and nobody has said that this is understood."""

    code = "licence_not_accepted"


class ExportFailed(SetupError):
    code = "export_failed"


class ParityFailed(ExportFailed):
    code = "parity_failed"


class GalleryMismatch(SetupError):
    """Faces were enrolled with another embedding model than the one loaded."""

    code = "gallery_mismatch"
    title = "The face gallery was made by another model"

    def __init__(self, collection: str, theirs: object, ours: object) -> None:
        super().__init__(
            f"the faces of the gallery {collection!r:.210} were enrolled with {theirs}, but the model here is {ours}, and "
            "the two cannot be compared; load that model (VISION_MODELS), or enroll the photos anew: "
            "vision-service faces reembed FOLDER"
        )
