"""The composition root: settings in, models loaded, one method a task. No HTTP anywhere below here.

with Engine() as engine:
    answer = engine.detect("street.jpg", confidence=0.4)
"""

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from service.catalogue import ModelCard, check_looks
from service.errors import InputError, ModelUnknown, OptionInvalid, StyleUnknown
from service.fleet import Fleet
from service.gallery.gallery import Gallery
from service.imaging.codec import Scale, decode, encode
from service.imaging.transforms import use_one_thread
from service.loaded import LoadedModel
from service.photo import ImageLike, Photo, open_photo
from service.recognition import Recognition
from service.repository.progress import Progress, terminal_progress
from service.repository.spec import ModelSpec, Task
from service.repository.store import find_built
from service.runtime.machine import give_back_memory, usable_cores
from service.settings import Settings
from service.tasks.classify import ClassifyAnswer, ClassifyOptions, classify, crop_scale, explain
from service.tasks.detect import DetectAnswer, DetectOptions, detect, letterbox_scale
from service.tasks.faces import DetectFacesAnswer, DetectFacesOptions, VerifyFaceAnswer, VerifyFaceOptions, detect_faces, verify
from service.tasks.optimize import OptimizeOptions, Step, check, optimize, reduced
from service.tasks.options import merged
from service.tasks.people import EnrollAnswer, EnrollOptions, IdentifyAnswer, IdentifyOptions
from service.tasks.stylize import SAMPLE, StyleInfo, StylizeOptions, example, list_styles, pick_painter, stylize, thumbnail
from service.tasks.task import ImageInfo, ModelInfo, Pixels, Timing, TimingMs


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


class Optimization(Iterator[Step]):
    """A painting that is being optimised: an iterator of its steps, which loads the model at the first one.

    close() ends it, between two steps. `model` is None until the model is loaded; `spec` says which one it will be.
    """

    def __init__(self, spec: ModelSpec, options: OptimizeOptions, steps: Callable[["Optimization"], Generator[Step]]) -> None:
        self.spec, self.options = spec, options
        self.model: ModelInfo | None = None
        self._steps = steps(self)

    def __next__(self) -> Step:
        return next(self._steps)

    def close(self) -> None:
        self._steps.close()


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
        self.fleet = Fleet(self.settings, progress or terminal_progress(), models)
        self._thumbnails: dict[tuple[str, str], bytes] = {}
        self.recognition = Recognition(self.settings, self._face_models, self.decode, gallery)

    def start(self) -> None:
        """Fetch, build and load every model and let each answer a warm-up run. Raises SetupError saying what to do."""
        use_one_thread()
        self.fleet.start()

    def close(self) -> None:
        """Stop taking work, finish what runs, free the models. An engine does not open again."""
        self.fleet.close()
        self.recognition.close()

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
        return self.fleet.pending

    @property
    def concurrency(self) -> int:
        """Calls that are worth making at the same time: one a core, and where models take batches, as many more as fill one."""
        largest = max((model.tuning.plan.batch for model in self.fleet.loaded), default=1)
        return (self.settings.cores or usable_cores()) + (largest if largest > 1 else 0)

    def decode(self, image: ImageLike, enough_for: ClassifyOptions | DetectOptions | None = None) -> Photo:
        """Pixels of `image`, which the other methods take too; see service.photo.

        All of them, for any task; or with the options of a classification or detection, of a JPEG no more than that needs
        (settings.reduced_decode). Raises ModelUnknown where these name none, and what open_photo raises.
        """
        return open_photo(image, self.settings, self._scale(enough_for))

    def classify(self, image: ImageLike, options: ClassifyOptions | None = None, **given: Any) -> ClassifyAnswer:
        """What is on the photo: the most probable classes, best first; with `explain` and `sliding_window` where that is seen.

        Raises OptionInvalid where the model cannot say that."""
        options = merged(ClassifyOptions, options, given)
        model = self._model("classify", options.model)
        if options.looks:
            return self._explained(image, options, model)
        photo, timing = self._opened(image, options)
        predictions = classify(photo.pixels, options, model, timing, photo.grid)
        return ClassifyAnswer(model=model.info, image=photo.info, timing_ms=timing.report(), predictions=predictions)

    def _explained(self, image: ImageLike, options: ClassifyOptions, model: LoadedModel) -> ClassifyAnswer:
        check_looks(options, model, self.fleet.loaded)
        photo, timing = self._opened(image, options)
        found = explain(photo.pixels, options, model, timing, photo.grid)
        if options.sliding_window:
            give_back_memory()  # a large photo's feature maps are some hundred megabytes
        info = model.info.model_copy(update={"precision": model.spec.precision})  # "maps" runs as it was built
        answer = ClassifyAnswer(model=info, image=photo.info, timing_ms=timing.report(), **found.fields)
        answer.keep_heat(found.heat)
        return answer

    def detect(self, image: ImageLike, options: DetectOptions | None = None, **given: Any) -> DetectAnswer:
        """Which objects are on the photo, and where."""
        options = merged(DetectOptions, options, given)
        model = self._model("detect", options.model)
        photo, timing = self._opened(image, options)
        predictions = detect(photo.pixels, options, model, timing, photo.grid)
        return DetectAnswer(model=model.info, image=photo.info, timing_ms=timing.report(), predictions=predictions)

    def detect_faces(self, image: ImageLike, options: DetectFacesOptions | None = None, **given: Any) -> DetectFacesAnswer:
        """Where the faces are, with five landmarks each."""
        options = merged(DetectFacesOptions, options, given)
        model = self._model("detect-faces", options.model)
        liveness = self._liveness() if options.liveness else None
        photo, timing = self._opened(image)
        faces = detect_faces(photo.pixels, options, model, timing, self.settings.max_faces, liveness)
        return DetectFacesAnswer(model=model.info, image=photo.info, timing_ms=timing.report(), faces=faces)

    def verify_face(
        self, image1: ImageLike, image2: ImageLike, options: VerifyFaceOptions | None = None, **given: Any
    ) -> VerifyFaceAnswer:
        """Do two photos show the same person?"""
        options = merged(VerifyFaceOptions, options, given)
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
        """The photo painted in a style by name, a blend of built-in ones, or the style of any picture."""
        options = merged(StylizeOptions, options, given)
        model = self._painter(options, style_image is not None)
        photo = self.decode(image)
        style = None if style_image is None else self.decode(style_image)
        timing = photo.timing.again(*(() if style is None else (style.timing,)))
        side = self.settings.max_style_side
        painted = stylize(photo.pixels, options, None if style is None else style.pixels, model, timing, side)
        info = ImageInfo(width=painted.shape[1], height=painted.shape[0])
        return StylizeAnswer(painted, model.info, info, timing.report(), options)

    def _painter(self, options: StylizeOptions, has_style_image: bool) -> LoadedModel:
        """Raises what pick_painter raises, and NotReady where only one that was unloaded would do."""
        try:
            spec = pick_painter(self.fleet.specs, options, has_style_image)
        except (ModelUnknown, StyleUnknown):
            spec = pick_painter(self.fleet.known, options, has_style_image)
        return self.load(spec.name)

    def optimize(
        self, image: ImageLike, style_image: ImageLike, options: OptimizeOptions | None = None, **given: Any
    ) -> Optimization:
        """The photo painted in the style of a picture by optimising its pixels, step by step; see service.tasks.optimize.

        What is wrong with pictures and options is raised here, what comes of loading and running the model by the first step.
        """
        options = merged(OptimizeOptions, options, given)
        spec = self.fleet.spec("paint", options.model)
        photo, style = self.decode(image).pixels, self.decode(style_image).pixels
        check(photo, style, options, spec)
        photo, style = reduced(photo, style, options)

        def steps(found: Optimization) -> Generator[Step]:
            model = self.load(spec.name)
            found.model = model.info
            yield from optimize(photo, style, options, model)

        return Optimization(spec, options, steps)

    def enroll(
        self,
        subject: str,
        photos: Mapping[str, ImageLike | InputError],
        options: EnrollOptions | None = None,
        *,
        timing: Timing | None = None,
        **given: Any,
    ) -> EnrollAnswer:
        """Know the person on these photos again; see service.recognition."""
        return self.recognition.enroll(subject, photos, options, timing=timing, **given)

    def identify(self, image: ImageLike, options: IdentifyOptions | None = None, **given: Any) -> IdentifyAnswer:
        """Who are the people on the photo?"""
        return self.recognition.identify(image, options, **given)

    @property
    def gallery(self) -> Gallery:
        """The faces that are known; see service.recognition."""
        return self.recognition.gallery

    def open_gallery(self) -> None:
        """Open the gallery and get it ready for the first search; nothing where no embedding model is there to be loaded.

        Raises what load() and `gallery` raise.
        """
        if self.fleet.has("embed-face"):
            self.gallery.warm()

    def styles(self) -> list[StyleInfo]:
        """The styles by name of every model that has some."""
        return [style for spec in self.fleet.specs if spec.task == "stylize" for style in list_styles(spec)]

    def thumbnail(self, style: str) -> bytes:
        """A JPEG of the sample photo painted in a style; painted once, then remembered. Raises StyleUnknown."""
        known = {info.name: info for info in self.styles()}
        if style not in known:
            raise StyleUnknown(style, list(known))
        model = self.load(known[style].model)
        key = style, model.digest
        if key not in self._thumbnails:
            self._thumbnails[key] = thumbnail(style, self._sample(), model, Timing())
        return self._thumbnails[key]

    def describe(self) -> list[ModelCard]:
        """A card for every model that is loaded."""
        return self.fleet.describe()

    def _sample(self) -> Pixels:
        """The photo that comes with the built-in styles, from whichever model of them was built; else a plain example."""
        with_sample = (spec for spec in self.fleet.specs if any(file.name == SAMPLE for file in spec.files))
        built = (find_built(spec, self.settings) for spec in with_sample)
        paths = (found.folder / "weights" / SAMPLE for found in built if found is not None)
        path = next((path for path in paths if path.is_file()), None)
        return example() if path is None else decode(path.read_bytes())

    def _opened(self, image: ImageLike, enough_for: ClassifyOptions | DetectOptions | None = None) -> tuple[Photo, Timing]:
        photo = self.decode(image, enough_for)
        return photo, photo.timing.again()

    def _scale(self, options: ClassifyOptions | DetectOptions | None) -> Scale | None:
        if options is None or not self.settings.reduced_decode:
            return None
        if isinstance(options, ClassifyOptions):
            return crop_scale(self.fleet.spec("classify", options.model), whole=options.sliding_window)
        return letterbox_scale(self.fleet.spec("detect", options.model))

    def load(self, name: str) -> LoadedModel:
        """The model called `name`, fetched, built, loaded and warmed up if it is not yet.

        Raises ModelUnknown, SetupError, and NotReady after close().
        """
        return self.fleet.get(name)

    def _face_models(self) -> tuple[LoadedModel, LoadedModel]:
        return self._model("detect-faces", None), self._model("embed-face", None)

    def _liveness(self) -> LoadedModel:
        try:
            return self._model("face-liveness", None)
        except ModelUnknown:
            text = "there is no model that tells living faces; `vision-service models pull minifasnet` gets one"
            raise OptionInvalid("liveness", text) from None

    def _model(self, task: Task, name: str | None) -> LoadedModel:
        return self.fleet.get(self.fleet.spec(task, name).name)
