"""The six tasks as HTTP sees them, in one table: what a request may carry, what runs, what comes back.

    upload -> photos -> Task.run -> Reply

Adding a task is a function that turns photos and options into a Reply, and a row of TASKS.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, Field

from service.annotate import draw_detections, draw_faces, draw_heat, draw_identified
from service.engine import Engine, StylizeAnswer
from service.errors import (
    GalleryMismatch,
    GalleryUnavailable,
    InputError,
    ModelUnknown,
    NoFace,
    OptionInvalid,
    SeveralFaces,
    StyleUnknown,
    VisionError,
)
from service.http.forms import Data
from service.http.negotiation import JSON, PICTURES, choose
from service.http.uploads import Fields, Upload
from service.imaging.codec import encode
from service.photo import Photo
from service.tasks.classify import ClassifyAnswer, ClassifyOptions
from service.tasks.detect import DetectAnswer, DetectOptions
from service.tasks.faces import DetectFacesAnswer, DetectFacesOptions, VerifyFaceAnswer, VerifyFaceOptions
from service.tasks.people import IdentifyAnswer, IdentifyOptions
from service.tasks.stylize import StylizeOptions
from service.tasks.task import Answer, ModelInfo, Pixels, Strict, TimingMs

Options = TypeVar("Options", bound=Strict)
Photos = Mapping[str, Photo]
DRAWN = (JSON, PICTURES["jpeg"], PICTURES["png"], PICTURES["webp"])
PAINTED = (PICTURES["png"], PICTURES["jpeg"], PICTURES["webp"])


@dataclass(frozen=True)
class Reply:
    """A finished answer: its bytes and how to label them, and which model took how long."""

    body: bytes
    media: str
    model: ModelInfo
    timing: TimingMs
    headers: Mapping[str, str] = field(default_factory=dict)


class Drawable(Strict):
    """What a task's options gain where its answer can be drawn on the photo."""

    format: Literal["json", "jpeg", "png", "webp"] | None = Field(
        None, description="answer with JSON, or with the photo and the result drawn on it; wins over the Accept header"
    )


class DrawnClassifyOptions(Drawable, ClassifyOptions):
    pass


class DrawnDetectOptions(Drawable, DetectOptions):
    pass


class DrawnDetectFacesOptions(Drawable, DetectFacesOptions):
    pass


class DrawnIdentifyOptions(Drawable, IdentifyOptions):
    pass


@dataclass(frozen=True)
class Task(Generic[Options]):
    """One row: `run(engine, photos, options, media)` gives the answer as `media`, one of `offers` (the first is the default).

    `answer` is the JSON answer's model, None where the answer is always a picture; `errors` are those of this task alone;
    `slow` tasks take seconds and wait in a queue of their own.
    """

    path: str
    summary: str
    description: str
    fields: Fields
    options: type[Options]
    answer: type[BaseModel] | None
    offers: tuple[str, ...]
    run: Callable[[Engine, Photos, Options, str], Reply]
    errors: tuple[type[VisionError], ...] = (ModelUnknown,)
    slow: bool = False
    drawn: Callable[[Options], str | None] = lambda _: None
    """Which options are missing without which there is nothing to draw, in words; None where there is something."""

    def offers_for(self, options: Options) -> tuple[str, ...]:
        """The media types that an answer with these options can have."""
        return self.offers if self.drawn(options) is None else self.offers[:1]

    def media(self, options: Options, accept: str | None) -> str:
        """The media type to answer with: the format option where it was given, else what the client accepts most.

        Raises NotAcceptable, and OptionInvalid for a format of a picture where nothing is drawn.
        """
        offers = self.offers_for(options)
        if "format" in options.model_fields_set:
            asked = {"json": JSON, **PICTURES}.get(str(getattr(options, "format", None)))
            if asked in offers:
                return asked
            if asked in self.offers:
                raise OptionInvalid("format", f"format: a picture is drawn only {self.drawn(options)}")
        return choose(accept, offers)

    def answer_upload(self, engine: Engine, upload: Upload[Options], media: str, arrived: float) -> Reply:
        """Decode the images and run the task, on the calling thread. `arrived`: the time.perf_counter() moment when the upload
        was complete; what it has waited since counts as queue. Raises whatever the engine raises."""
        waited = time.perf_counter() - arrived
        photos = _decode(engine, upload.images, _sees(upload.options, media))
        for photo in photos.values():
            photo.timing.waited(waited, engine.settings.request_timeout)
        return self.run(engine, photos, upload.options, media)


def _sees(options: Strict, media: str) -> ClassifyOptions | DetectOptions | None:
    """The options where not every pixel may be needed: those of a classification, or of a detection that is not drawn."""
    return options if media == JSON and isinstance(options, ClassifyOptions | DetectOptions) else None


def _decode(engine: Engine, images: Mapping[str, Data], enough_for: ClassifyOptions | DetectOptions | None) -> Photos:
    photos: dict[str, Photo] = {}
    for name, data in images.items():
        try:
            photos[name] = engine.decode(data, enough_for)
        except InputError as error:
            error.photo = name
            if len(images) > 1:
                error.args = (f"{name}: {error}",)
            raise
    return photos


def _as_json(answer: Answer | VerifyFaceAnswer) -> Reply:
    return Reply(answer.model_dump_json().encode(), JSON, answer.model, answer.timing_ms)


def _as_picture(make: Callable[[], bytes], media: str, answer: Answer | StylizeAnswer) -> Reply:
    """`make` draws and encodes; that time joins the engine's stages in the Server-Timing header."""
    start = time.perf_counter()
    body = make()
    encoding = (time.perf_counter() - start) * 1e3
    stages = answer.timing_ms.model_dump()
    stages |= {"encode": encoding, "total": stages.pop("total") + encoding}
    headers = {
        "X-Model": answer.model.name,
        "X-Model-Version": answer.model.version,
        "X-Provider": answer.model.provider,
        "X-Precision": answer.model.precision,
        "X-Image-Width": str(answer.image.width),
        "X-Image-Height": str(answer.image.height),
        "Server-Timing": ", ".join(f"{stage};dur={spent:.1f}" for stage, spent in stages.items()),
    }
    return Reply(body, media, answer.model, answer.timing_ms, headers)


def _encode(pixels: Pixels, media: str) -> bytes:
    return encode(pixels, media.removeprefix("image/"))  # type: ignore[arg-type]


def _classify(engine: Engine, photos: Photos, options: DrawnClassifyOptions, media: str) -> Reply:
    pixels, answer = photos["image"].pixels, engine.classify(photos["image"], options)
    heat = answer.heat
    if media == JSON or heat is None:
        return _as_json(answer)
    return _as_picture(lambda: _encode(draw_heat(pixels, heat), media), media, answer)


def _detect(engine: Engine, photos: Photos, options: DrawnDetectOptions, media: str) -> Reply:
    pixels, answer = photos["image"].pixels, engine.detect(photos["image"], options)
    if media == JSON:
        return _as_json(answer)
    return _as_picture(lambda: _encode(draw_detections(pixels, answer.predictions), media), media, answer)


def _detect_faces(engine: Engine, photos: Photos, options: DrawnDetectFacesOptions, media: str) -> Reply:
    pixels, answer = photos["image"].pixels, engine.detect_faces(photos["image"], options)
    if media == JSON:
        return _as_json(answer)
    return _as_picture(lambda: _encode(draw_faces(pixels, answer.faces), media), media, answer)


def _identify(engine: Engine, photos: Photos, options: DrawnIdentifyOptions, media: str) -> Reply:
    pixels, answer = photos["image"].pixels, engine.identify(photos["image"], options)
    if media == JSON:
        return _as_json(answer)
    return _as_picture(lambda: _encode(draw_identified(pixels, answer.faces), media), media, answer)


def _verify_face(engine: Engine, photos: Photos, options: VerifyFaceOptions, _: str) -> Reply:
    return _as_json(engine.verify_face(photos["image1"], photos["image2"], options))


def _stylize(engine: Engine, photos: Photos, options: StylizeOptions, media: str) -> Reply:
    options = options.model_copy(update={"format": media.removeprefix("image/")})
    answer = engine.stylize(photos["image"], options, style_image=photos.get("style_image"))
    return _as_picture(answer.encode, media, answer)


TASKS: tuple[Task[Any], ...] = (
    Task(
        path="/classify",
        summary="What is on a photo",
        description="The `top_k` most probable classes, best first. Confidences are a softmax that sums to 1 over all classes.\n\n"
        "`explain=true` adds where the network looked: for each class what every place of its last feature map says for it, and a "
        "box around the strongest region. `sliding_window=true` adds the class of each window over the whole photo. Either may be "
        "drawn on the photo as a heat map, with `Accept: image/jpeg` (or png, webp) or with `format`; both run in float32.",
        fields=Fields(("image",)),
        options=DrawnClassifyOptions,
        answer=ClassifyAnswer,
        offers=DRAWN,
        run=_classify,
        drawn=lambda options: None if options.looks else "with explain=true or sliding_window=true",
    ),
    Task(
        path="/detect",
        summary="Which objects are on a photo, and where",
        description="Objects with their boxes, the most confident first. With `Accept: image/jpeg` (or png, webp), or with "
        "`format`, the answer is the photo with boxes and labels drawn on it.",
        fields=Fields(("image",)),
        options=DrawnDetectOptions,
        answer=DetectAnswer,
        offers=DRAWN,
        run=_detect,
    ),
    Task(
        path="/detect-faces",
        summary="Where the faces on a photo are",
        description="Faces with five landmarks each (left and right are the person's own), the most confident first; drawn on the "
        "photo with `Accept: image/jpeg` (or png, webp), or with `format`.",
        fields=Fields(("image",)),
        options=DrawnDetectFacesOptions,
        answer=DetectFacesAnswer,
        offers=DRAWN,
        run=_detect_faces,
    ),
    Task(
        path="/verify-face",
        summary="Do two photos show the same person",
        description="Compares one face of each photo, the most prominent one unless `face` says otherwise. A photo without a face "
        "is an error that names the photo, never the answer 'different'.",
        fields=Fields(("image1", "image2")),
        options=VerifyFaceOptions,
        answer=VerifyFaceAnswer,
        offers=(JSON,),
        run=_verify_face,
        errors=(ModelUnknown, NoFace, SeveralFaces),
    ),
    Task(
        path="/identify",
        summary="Who are the people on a photo",
        description="Every face of the photo with the subjects of a gallery that are most like it, at most `top_k`, best first. "
        "Where none is similar enough the face is `unknown`: no candidate is ever made up. Drawn on the photo with names by "
        "`Accept: image/jpeg` (or png, webp), or by `format`. Faces become known by POST /subjects/{subject}/faces.",
        fields=Fields(("image",)),
        options=DrawnIdentifyOptions,
        answer=IdentifyAnswer,
        offers=DRAWN,
        run=_identify,
        errors=(ModelUnknown, GalleryUnavailable, GalleryMismatch),
    ),
    Task(
        path="/stylize",
        summary="Paint a photo in a style",
        description="In a built-in style (GET /styles), in a blend of them like `name:0.6,other:0.4`, or in the style of the "
        "picture sent as `style_image`. Model, size and timing are in the headers.",
        fields=Fields(("image",), ("style_image",)),
        options=StylizeOptions,
        answer=None,
        offers=PAINTED,
        run=_stylize,
        errors=(ModelUnknown, StyleUnknown),
        slow=True,
    ),
)
