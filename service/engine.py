"""The composition root: settings in, models loaded, one method a task. No HTTP anywhere below here.

with Engine() as engine:
    answer = engine.detect("street.jpg", confidence=0.4)
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

from pydantic import BaseModel, Field, ValidationError

from service.errors import InputError, ModelUnknown, NotReady, SettingInvalid, SpecInvalid, StyleUnknown
from service.gallery import check_models, open_gallery
from service.gallery.gallery import EmbeddingModel, Gallery
from service.gallery.names import check_name
from service.imaging.codec import Scale, decode, encode
from service.imaging.transforms import use_one_thread
from service.loaded import LoadedModel, load, load_known
from service.photo import ImageLike, Photo, open_photo
from service.repository.progress import Progress, terminal_progress
from service.repository.spec import MANIFEST, Accuracy, InputContract, Licence, ModelSpec, Precision, Task
from service.repository.store import ensure, find_built, scan
from service.runtime.machine import give_back_memory, usable_cores
from service.runtime.providers import Choice, choose
from service.runtime.session import run_once
from service.runtime.tuning import Tuning
from service.settings import Settings
from service.tasks.classify import ClassifyAnswer, ClassifyOptions, classify, crop_scale
from service.tasks.detect import DetectAnswer, DetectOptions, detect, letterbox_scale
from service.tasks.face_embedding import METHOD
from service.tasks.faces import DetectFacesAnswer, DetectFacesOptions, VerifyFaceAnswer, VerifyFaceOptions, detect_faces, verify
from service.tasks.options import explain
from service.tasks.people import (
    EnrollAnswer,
    EnrolledFace,
    EnrollOptions,
    IdentifyAnswer,
    IdentifyOptions,
    Limits,
    Prepared,
    Refusal,
    enroll,
    identify,
    prepare,
    refusal,
    store,
)
from service.tasks.stylize import SAMPLE, StyleInfo, StylizeOptions, list_styles, pick_painter, stylize, thumbnail
from service.tasks.task import ImageInfo, ModelInfo, Pixels, Strict, Timing, TimingMs

Options = TypeVar("Options", bound=Strict)

FAMILIES: dict[Task, tuple[str, ...]] = {
    "classify": ("softmax",),
    "detect": ("yolov3",),
    "detect-faces": ("yunet",),
    "embed-face": ("sface",),
    "stylize": ("built-in-styles", "arbitrary-style"),
}
"""The families of models whose outputs the tasks can read."""


class ModelCard(BaseModel):
    """One loaded model, as GET /models and `vision-service models list` show it."""

    name: str
    version: str
    task: Task
    family: str
    summary: str
    default: bool
    licence: Licence
    sources: list[str] = Field(description="package and version, or URL, of each weight file")
    digest: str = Field(description="SHA-256 of the weights, of the first file where there are several")
    input: InputContract
    provider: str = Field(description="the execution provider that really runs it")
    provider_note: str | None = Field(description="why it is not the provider asked for or a faster one, if so")
    precision: Precision = Field(description="the arithmetic that it runs in")
    tuning: Tuning = Field(description="how it runs on this machine, and what else was measured")
    classes: int = Field(description="how many labels it has; 0 where labels make no sense")
    accuracy: list[Accuracy]
    ready: bool


@dataclass(frozen=True)
class StylizeAnswer:
    """A painted picture with what the JSON answers of other tasks carry."""

    pixels: Pixels
    model: ModelInfo
    image: ImageInfo
    timing_ms: TimingMs
    options: StylizeOptions

    def encode(self) -> bytes:
        """The picture as a file, in the format and quality of its options."""
        return encode(self.pixels, self.options.format, self.options.quality)


class Engine:
    """All tasks on all models of the settings. Safe to use from several threads.

    Models are fetched, built and loaded by start(), which `with` calls, or each at its first use; they live until close(). `models`
    (by name) skips all that, for tests. `progress` hears of downloads; without it stderr shows them.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        models: Mapping[str, LoadedModel] | None = None,
        gallery: Gallery | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.settings = settings or Settings.from_env()
        self._progress = progress or terminal_progress()
        self._models: dict[str, LoadedModel] = dict(models or {})
        self._specs = {name: model.spec for name, model in self._models.items()} if models is not None else scan(self.settings)
        for spec in self._specs.values():
            _check(spec)
        self._chosen = _choices(list(self._specs.values()))
        self._choice: Choice | None = None
        self._gallery = gallery
        self._loading = threading.Lock()
        self._opening = threading.Lock()
        self._closed = False
        self._thumbnails: dict[str, bytes] = {}

    def start(self) -> None:
        """Fetch, build and load every model and let each answer a warm-up run. Raises SetupError saying what to do."""
        use_one_thread()
        if not self._specs:
            raise SettingInvalid("no models were found; check VISION_MODELS and VISION_MODEL_REPOSITORY")
        for name in self._specs:
            self.load(name)

    def close(self) -> None:
        """Stop taking work, finish what runs, free the models. An engine does not open again."""
        with self._loading:
            self._closed = True
            models, self._models = self._models, {}
        for model in models.values():
            model.close()
        with self._opening:
            gallery, self._gallery = self._gallery, None
        if gallery is not None:
            gallery.close()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def ready(self) -> bool:
        """Has every model answered its warm-up run?"""
        return not self.pending

    @property
    def pending(self) -> list[str]:
        """Names of models that have not answered a warm-up run."""
        return [name for name in self._specs if name not in self._models or not self._models[name].warm]

    @property
    def concurrency(self) -> int:
        """Calls that are worth making at the same time: one a core, and where models take batches, as many more as fill one."""
        largest = max((model.tuning.plan.batch for model in list(self._models.values())), default=1)
        return (self.settings.cores or usable_cores()) + (largest if largest > 1 else 0)

    def decode(self, image: ImageLike, enough_for: ClassifyOptions | DetectOptions | None = None) -> Photo:
        """Pixels of `image`, which the other methods take too; see service.photo.

        All of them, for any task; or with the options of a classification or detection, of a JPEG no more than that needs
        (settings.reduced_decode). Raises ModelUnknown where these name none, and what open_photo raises.
        """
        return open_photo(image, self.settings, self._scale(enough_for))

    def classify(self, image: ImageLike, options: ClassifyOptions | None = None, **given: Any) -> ClassifyAnswer:
        """What is on the photo: the most probable classes, best first."""
        options = _options(ClassifyOptions, options, given)
        model = self._model("classify", options.model)
        photo, timing = self._opened(image, options)
        predictions = classify(photo.pixels, options, model, timing, photo.grid)
        return ClassifyAnswer(model=model.info, image=photo.info, timing_ms=timing.report(), predictions=predictions)

    def detect(self, image: ImageLike, options: DetectOptions | None = None, **given: Any) -> DetectAnswer:
        """Which objects are on the photo, and where."""
        options = _options(DetectOptions, options, given)
        model = self._model("detect", options.model)
        photo, timing = self._opened(image, options)
        predictions = detect(photo.pixels, options, model, timing, photo.grid)
        return DetectAnswer(model=model.info, image=photo.info, timing_ms=timing.report(), predictions=predictions)

    def detect_faces(self, image: ImageLike, options: DetectFacesOptions | None = None, **given: Any) -> DetectFacesAnswer:
        """Where the faces are, with five landmarks each."""
        options = _options(DetectFacesOptions, options, given)
        model = self._model("detect-faces", options.model)
        photo, timing = self._opened(image)
        faces = detect_faces(photo.pixels, options, model, timing, self.settings.max_faces)
        return DetectFacesAnswer(model=model.info, image=photo.info, timing_ms=timing.report(), faces=faces)

    def verify_face(
        self, image1: ImageLike, image2: ImageLike, options: VerifyFaceOptions | None = None, **given: Any
    ) -> VerifyFaceAnswer:
        """Do two photos show the same person?"""
        options = _options(VerifyFaceOptions, options, given)
        embedder = self._model("embed-face", options.model)
        detector = self._model("detect-faces", None)
        first, second = self.decode(image1), self.decode(image2)
        timing = first.timing.again(second.timing)
        result = verify(first.pixels, second.pixels, options, detector, embedder, timing)
        return VerifyFaceAnswer(model=embedder.info, detector=detector.info, timing_ms=timing.report(), **result)

    def stylize(
        self,
        image: ImageLike,
        options: StylizeOptions | None = None,
        *,
        style_image: ImageLike | None = None,
        **given: Any,
    ) -> StylizeAnswer:
        """The photo painted in a built-in style, a blend of them, or the style of any picture."""
        options = _options(StylizeOptions, options, given)
        model = self.load(pick_painter(list(self._specs.values()), options, style_image is not None).name)
        photo = self.decode(image)
        style = None if style_image is None else self.decode(style_image)
        timing = photo.timing.again(*(() if style is None else (style.timing,)))
        side = self.settings.max_style_side
        painted = stylize(photo.pixels, options, None if style is None else style.pixels, model, timing, side)
        info = ImageInfo(width=painted.shape[1], height=painted.shape[0])
        return StylizeAnswer(painted, model.info, info, timing.report(), options)

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
        options = _options(EnrollOptions, options, given)
        models = detector, embedder = self._model("detect-faces", None), self._model("embed-face", None)
        timing = timing or Timing()
        pixels = _Decoded(photos, self._tried, timing)
        result = enroll(pixels, subject, options, self._face_limits, models, self.gallery, timing)
        return EnrollAnswer(model=embedder.info, detector=detector.info, timing_ms=timing.report(), **result)

    def prepare_faces(
        self, photos: Mapping[str, ImageLike | InputError], options: EnrollOptions | None = None, **given: Any
    ) -> tuple[list[Prepared], list[Refusal]]:
        """The first half of enroll(): what could be stored of these photos, and what is refused. Needs no gallery."""
        options = _options(EnrollOptions, options, given)
        models = self._model("detect-faces", None), self._model("embed-face", None)
        timing = Timing()
        pixels = _Decoded(photos, self._tried, timing)
        prepared, refused = prepare(pixels, options, self._face_limits, models, timing)
        return prepared, [refusal(error) for error in refused]

    def store_faces(
        self, subject: str, prepared: Sequence[Prepared], options: EnrollOptions | None = None, **given: Any
    ) -> list[EnrolledFace]:
        """The second half of enroll(): all of `prepared` (at least one) is stored under `subject`, or nothing."""
        options = _options(EnrollOptions, options, given)
        return store(prepared, check_name("subject", subject), options, self._model("embed-face", None), self.gallery, Timing())

    def identify(self, image: ImageLike, options: IdentifyOptions | None = None, **given: Any) -> IdentifyAnswer:
        """Who are the people on the photo?"""
        options = _options(IdentifyOptions, options, given)
        models = detector, embedder = self._model("detect-faces", None), self._model("embed-face", None)
        photo, timing = self._opened(image)
        result = identify(photo.pixels, options, self.settings.max_faces, models, self.gallery, timing)
        return IdentifyAnswer(model=embedder.info, detector=detector.info, image=photo.info, timing_ms=timing.report(), **result)

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
                    opened = open_gallery(self.settings, model)
                    try:
                        check_models(opened)
                    except BaseException:
                        opened.close()
                        raise
                    self._gallery = opened
                gallery = self._gallery
        return gallery

    def open_gallery(self) -> None:
        """Open the gallery and get it ready for the first search; nothing where no embedding model is there to be loaded.

        Raises what load() and `gallery` raise.
        """
        if ("embed-face", None) in self._chosen:
            self.gallery.warm()

    @property
    def embedding_model(self) -> EmbeddingModel:
        """What makes the embeddings of enroll() and identify(). Raises what load() raises."""
        loaded = self._model("embed-face", None)
        (output,) = loaded.sessions["model"].outputs
        return EmbeddingModel(loaded.spec.name, loaded.spec.version, loaded.digest, METHOD, int(output.shape[-1] or 0))

    def styles(self) -> list[StyleInfo]:
        """The built-in styles of every model that has some."""
        return [style for spec in self._specs.values() if spec.styles for style in list_styles(spec)]

    def thumbnail(self, style: str) -> bytes:
        """A JPEG of the sample photo painted in a built-in style; painted once, then remembered. Raises StyleUnknown."""
        if style not in self._thumbnails:
            known = {info.name: info for info in self.styles()}
            if style not in known:
                raise StyleUnknown(style, list(known))
            model = self.load(known[style].model)
            sample = decode((model.folder / "weights" / SAMPLE).read_bytes())
            self._thumbnails[style] = thumbnail(style, sample, model, Timing())
        return self._thumbnails[style]

    def describe(self) -> list[ModelCard]:
        """A card for every model that is loaded."""
        return [_card(model) for model in list(self._models.values())]

    def _opened(self, image: ImageLike, enough_for: ClassifyOptions | DetectOptions | None = None) -> tuple[Photo, Timing]:
        photo = self.decode(image, enough_for)
        return photo, photo.timing.again()

    @property
    def _face_limits(self) -> Limits:
        return Limits(self.settings.min_face_size, self.settings.min_face_sharpness)

    def _tried(self, image: ImageLike | InputError) -> Photo | InputError:
        """The photo, or why it is none."""
        if isinstance(image, InputError):
            return image
        try:
            return self.decode(image)
        except InputError as error:
            return error

    def _scale(self, options: ClassifyOptions | DetectOptions | None) -> Scale | None:
        if options is None or not self.settings.reduced_decode:
            return None
        if isinstance(options, ClassifyOptions):
            return crop_scale(self._spec("classify", options.model))
        return letterbox_scale(self._spec("detect", options.model))

    def _spec(self, task: Task, name: str | None) -> ModelSpec:
        spec = self._chosen.get((task, name))
        if spec is None:
            raise ModelUnknown(name or "(default)", [spec.name for spec in self._specs.values() if spec.task == task])
        return spec

    def _model(self, task: Task, name: str | None) -> LoadedModel:
        return self.load(self._spec(task, name).name)

    def load(self, name: str) -> LoadedModel:
        """The model called `name`, fetched, built, loaded and warmed up if it is not yet.

        Raises ModelUnknown, SetupError, and NotReady after close().
        """
        model = self._models.get(name)
        if model is not None and model.warm:
            return model
        if name not in self._specs:
            raise ModelUnknown(name, list(self._specs))
        with self._loading:
            if self._closed:
                raise NotReady("the engine is closed")
            if name not in self._models:
                self._models[name] = self._open(self._specs[name])
            self._models[name].warm_up()
            give_back_memory()
            return self._models[name]

    def _open(self, spec: ModelSpec) -> LoadedModel:
        self._choice = self._choice or choose(self.settings.device)
        built = find_built(spec, self.settings)
        known = None if built is None else load_known(built, self._choice, self.settings)
        return known or load(ensure(spec, self.settings, run_once, self._progress), self._choice, self.settings)


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


def _choices(specs: Sequence[ModelSpec]) -> dict[tuple[Task, str | None], ModelSpec]:
    """The model that each task runs, by its name, and under None the default one: the first marked so, else the first."""
    chosen: dict[tuple[Task, str | None], ModelSpec] = {}
    for spec in sorted(specs, key=lambda spec: not spec.default):
        chosen.setdefault((spec.task, None), spec)
        chosen[spec.task, spec.name] = spec
    return chosen


def _check(spec: ModelSpec) -> None:
    known = FAMILIES[spec.task]
    if spec.family not in known:
        text = f"{spec.folder / MANIFEST}: family: no code reads {spec.family!r} for {spec.task}; known: {', '.join(known)}"
        raise SpecInvalid(text)
    if spec.styles and all(file.name != SAMPLE for file in spec.files):
        text = f"{spec.folder / MANIFEST}: files: built-in styles need a photo for their thumbnails, a file named {SAMPLE}"
        raise SpecInvalid(text)


def _card(model: LoadedModel) -> ModelCard:
    spec, info = model.spec, model.info
    return ModelCard(
        **spec.model_dump(include={"name", "version", "task", "family", "summary", "default"}),
        licence=spec.licence,
        sources=list(dict.fromkeys(source.label for file in spec.files for source in file.sources)),
        digest=info.digest,
        input=spec.input,
        provider=info.provider,
        provider_note=model.note,
        precision=info.precision,
        tuning=model.tuning,
        classes=len(model.labels),
        accuracy=list(spec.accuracy),
        ready=model.warm,
    )


def _options(kind: type[Options], options: Options | None, given: dict[str, Any]) -> Options:
    if options is not None and not given:
        return options
    base = {} if options is None else options.model_dump(exclude_unset=True)
    try:
        return kind(**{**base, **given})
    except ValidationError as error:
        raise explain(kind, error) from None
