"""Faces known by name: the gallery, opened for the default face models, and the two tasks that work on it."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.errors import InputError, NotReady
from service.gallery import check_models, open_gallery
from service.gallery.gallery import EmbeddingModel, Gallery
from service.gallery.names import check_name
from service.loaded import LoadedModel
from service.photo import ImageLike, Photo
from service.settings import Settings
from service.tasks.face_embedding import method_of, threshold_of
from service.tasks.options import merged
from service.tasks.people import (
    EnrollAnswer,
    EnrolledFace,
    EnrollOptions,
    IdentifyAnswer,
    IdentifyOptions,
    Limits,
    Prepared,
    Refusal,
    SeenFace,
    enroll,
    identify,
    prepare,
    refusal,
    see,
    store,
)
from service.tasks.task import ModelInfo, Pixels, Timing, TimingMs


@dataclass(frozen=True)
class Sight:
    """What `see` found: `faces`, the most confident first; `threshold`: cosine from which on two faces count as one person."""

    detector: ModelInfo
    model: ModelInfo
    threshold: float
    timing_ms: TimingMs
    faces: Sequence[SeenFace]


class Recognition:
    """`models` gives the face detector and the embedder, `decode` pixels. Safe to use from several threads."""

    def __init__(
        self,
        settings: Settings,
        models: Callable[[], tuple[LoadedModel, LoadedModel]],
        decode: Callable[[ImageLike], Photo],
        gallery: Gallery | None = None,
    ) -> None:
        self._settings, self._models, self._decode, self._gallery = settings, models, decode, gallery
        self._limits = Limits(settings.min_face_size, settings.min_face_sharpness)
        self._opening = threading.Lock()
        self._closed = False

    def enroll(
        self,
        subject: str,
        photos: Mapping[str, ImageLike | InputError],
        options: EnrollOptions | None = None,
        *,
        timing: Timing | None = None,
        **given: Any,
    ) -> EnrollAnswer:
        """Know the person on these photos again, as `subject`: all are enrolled, or none (options.partial: those that can be).

        `photos` are named, for messages; one may be the error that it could not be decoded with. They are decoded one after the
        other, so that never more than two are in memory. `timing`: a clock that has waited for this already.
        """
        options = merged(EnrollOptions, options, given)
        models = detector, embedder = self._models()
        timing = timing or Timing()
        pixels = _Decoded(photos, self._tried, timing)
        result = enroll(pixels, subject, options, self._limits, models, self.gallery, timing)
        return EnrollAnswer(model=embedder.info, detector=detector.info, timing_ms=timing.report(), **result)

    def prepare_faces(
        self, photos: Mapping[str, ImageLike | InputError], options: EnrollOptions | None = None, **given: Any
    ) -> tuple[list[Prepared], list[Refusal]]:
        """The first half of enroll(): what could be stored of these photos, and what is refused. Needs no gallery."""
        options = merged(EnrollOptions, options, given)
        models = self._models()
        timing = Timing()
        pixels = _Decoded(photos, self._tried, timing)
        prepared, refused = prepare(pixels, options, self._limits, models, timing)
        return prepared, [refusal(error) for error in refused]

    def store_faces(
        self, subject: str, prepared: Sequence[Prepared], options: EnrollOptions | None = None, **given: Any
    ) -> list[EnrolledFace]:
        """The second half of enroll(): all of `prepared` (at least one) is stored under `subject`, or nothing."""
        options = merged(EnrollOptions, options, given)
        return store(prepared, check_name("subject", subject), options, self._models()[1], self.gallery, Timing())

    def identify(self, image: ImageLike, options: IdentifyOptions | None = None, **given: Any) -> IdentifyAnswer:
        """Who are the people on the photo?"""
        options = merged(IdentifyOptions, options, given)
        models = detector, embedder = self._models()
        photo = self._decode(image)
        timing = photo.timing.again()
        result = identify(photo.pixels, options, self._settings.max_faces, models, self.gallery, timing)
        return IdentifyAnswer(model=embedder.info, detector=detector.info, image=photo.info, timing_ms=timing.report(), **result)

    def see(self, image: ImageLike, confidence: float) -> Sight:
        """Every face of the photo with its embedding, whoever it is. Needs no gallery."""
        models = detector, embedder = self._models()
        photo = self._decode(image)
        timing = photo.timing.again()
        faces = see(photo.pixels, confidence, self._settings.max_faces, models, timing)
        return Sight(detector.info, embedder.info, threshold_of(embedder).value, timing.report(), faces)

    @property
    def gallery(self) -> Gallery:
        """The faces that are known, opened at its first use for the default embedding model.

        Raises what open_gallery raises, GalleryMismatch where faces of another model are in it, ModelUnknown where no embedding
        model is loaded, and NotReady after close().
        """
        gallery = self._gallery
        if gallery is None:
            model = self.embedding_model
            with self._opening:
                if self._closed:
                    raise NotReady("the engine is closed")
                if self._gallery is None:
                    opened = open_gallery(self._settings, model)
                    try:
                        check_models(opened)
                    except BaseException:
                        opened.close()
                        raise
                    self._gallery = opened
                gallery = self._gallery
        return gallery

    @property
    def embedding_model(self) -> EmbeddingModel:
        """What makes the embeddings of enroll() and identify(). Raises what load() raises."""
        loaded = self._models()[1]
        (output,) = loaded.sessions["model"].outputs
        spec = loaded.spec
        return EmbeddingModel(spec.name, spec.version, loaded.digest, method_of(spec), int(output.shape[-1] or 0))

    def close(self) -> None:
        """Let go of the gallery; it is not opened again."""
        with self._opening:
            self._closed = True
            gallery, self._gallery = self._gallery, None
        if gallery is not None:
            gallery.close()

    def _tried(self, image: ImageLike | InputError) -> Photo | InputError:
        """The photo, or why it is none."""
        if isinstance(image, InputError):
            return image
        try:
            return self._decode(image)
        except InputError as error:
            return error


class _Decoded(Mapping[str, Pixels | InputError]):
    """Photos by name, each decoded when it is asked for and not kept; `timing` hears of it."""

    def __init__(
        self,
        photos: Mapping[str, ImageLike | InputError],
        open_: Callable[[ImageLike | InputError], Photo | InputError],
        timing: Timing,
    ) -> None:
        self._photos, self._open, self._timing = photos, open_, timing

    def __getitem__(self, name: str) -> Pixels | InputError:
        photo = self._open(self._photos[name])
        if isinstance(photo, InputError):
            return photo
        for stage, start, end in photo.timing.spans:
            if stage == "decode":
                self._timing.started -= end - start if start < self._timing.started else 0.0
                self._timing.add(stage, (end - start) * 1e3, end)
        return photo.pixels

    def __iter__(self) -> Iterator[str]:
        return iter(self._photos)

    def __len__(self) -> int:
        return len(self._photos)
