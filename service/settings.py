"""Everything an operator can set: one name, one default, one sentence each. Read once, when asked; never at import."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from platformdirs import user_data_path
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError

from service.errors import SettingInvalid

PREFIX = "VISION_"
ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^/?#@\s*]+")


def _split_names(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _split_paths(value: object) -> object:
    return tuple(Path(part).expanduser() for part in value.split(os.pathsep) if part) if isinstance(value, str) else value


def _check_origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    for origin in origins:
        if not ORIGIN.fullmatch(origin):
            raise ValueError(
                f"{origin!r} is no origin; write each like https://example.org, in small letters and without a path, or *"
            )
    return origins


Names = Annotated[tuple[str, ...], BeforeValidator(_split_names)]
Paths = Annotated[tuple[Path, ...], BeforeValidator(_split_paths)]


def _no_names(value: object) -> object:
    return () if value == "none" else _split_names(value)


Protocols = Annotated[tuple[Literal["kserve", "deepstack", "compreface"], ...], BeforeValidator(_no_names)]


class Settings(BaseModel):
    """The service's settings. Each field `name` is set by the environment variable `VISION_NAME`."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where models run; cuda refuses to start without a GPU")
    models: Names = Field((), description="names of the models to load, separated by commas; empty: every model found")
    model_repository: Paths = Field((), description=f"further model folders, searched first, separated by '{os.pathsep}'")
    data_dir: Path | None = Field(
        None,
        description="where models are built whose own folder cannot be written, as a wheel's; empty: the user's data folder",
    )
    detector: str = Field(
        "auto",
        description="the default detector; auto: yolox-s where its host answered at the first start, else yolov3-tiny",
    )
    reload_seconds: float = Field(
        2.0, ge=0, le=3600, description="seconds between two looks at the model folders for changes; 0: never"
    )
    max_model_bytes: int = Field(2 * 2**30, ge=1024, description="largest ONNX file that may be added, in bytes")
    trial_seconds: float = Field(60.0, gt=0, le=3600, description="seconds that the trial run of an added model may take")
    offline: bool = Field(False, description="never download; a missing model is an error at once")
    precision: Literal["auto", "float", "int8", "float16"] = Field(
        "auto", description="arithmetic of the models; auto: the fastest that was measured here and keeps the accuracy"
    )
    tune: bool = Field(True, description="measure threads, parallel runs, batch and precision at the first start; off: defaults")
    cores: int = Field(0, ge=0, le=4096, description="cores to plan for; 0: all that this process may use, shared among WORKERS")
    threads: int = Field(0, ge=0, le=256, description="threads inside one model run; 0: as measured")
    parallel: int = Field(0, ge=0, le=256, description="runs of one model at the same time; 0: as measured")
    batch: int = Field(0, ge=0, le=1024, description="most pictures in one run of a model; 0: as measured")
    reduced_decode: bool = Field(True, description="decode a JPEG at 1/2 to 1/8 of its size where the model needs no more")
    queue_length: int = Field(256, ge=1, le=100_000, description="requests of one task that may wait before 503")
    queue_timeout: float = Field(
        2.0, gt=0, le=3600, description="seconds a request, not a painting, may wait for its turn before 503"
    )
    request_timeout: float = Field(60.0, gt=0, le=3600, description="seconds until a request is given up with 504")
    client_timeout: float = Field(20.0, gt=0, le=3600, description="seconds a client may send or read nothing in a request")
    shutdown_seconds: float = Field(30.0, ge=0, le=3600, description="seconds that running requests get to end at SIGTERM")
    max_body_bytes: int = Field(32 * 2**20, ge=1024, description="largest request body in bytes, before 413")
    max_pixels: int = Field(64_000_000, ge=1024, description="most pixels of one picture, checked before decoding, before 413")
    max_image_side: int = Field(16_384, ge=16, description="longest side of a picture in pixels, before 413")
    min_image_side: int = Field(8, ge=1, description="shortest side of a picture in pixels, before 422")
    max_faces: int = Field(256, ge=1, description="most faces answered per photo, the most confident first")
    max_style_side: int = Field(2048, ge=64, description="longest side of a painted picture; larger photos are scaled down to it")
    jobs: int = Field(1, ge=1, le=64, description="jobs of POST /stylize/optimize that run at the same time, in each process")
    jobs_waiting: int = Field(8, ge=0, le=1000, description="jobs that may wait for their turn before 503")
    job_seconds: float = Field(600.0, gt=0, le=86_400, description="seconds that a job may run")
    jobs_kept: int = Field(16, ge=1, le=1000, description="jobs that have ended and are remembered with their pictures")
    job_keep_seconds: float = Field(3600.0, gt=0, le=86_400, description="seconds for which they are")
    min_face_size: float = Field(32.0, ge=12, le=112, description="pixels of a face's shorter side, below which it is not enrolled")
    min_face_sharpness: float = Field(0.005, ge=0, le=1, description="sharpness of a face, below which it is not enrolled")
    gallery_url: SecretStr | None = Field(
        None, description="where faces are kept: sqlite:///path or postgresql://...; empty: gallery.sqlite3 in the data folder"
    )
    api_keys: SecretStr | None = Field(None, description="keys of clients: name:scope[+scope]:key, with commas between")
    api_keys_file: Path | None = Field(None, description="a file with such keys, one a line")
    open: bool = Field(False, description="serve other machines without keys")
    cors_origins: Annotated[Names, AfterValidator(_check_origins)] = Field(
        (), description="origins of web pages that may call the service, separated by commas, or *"
    )
    protocols: Protocols = Field(
        ("kserve", "deepstack", "compreface"),
        description="other services' APIs that are answered too, separated by commas: kserve, deepstack, compreface; or none",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="what is logged")

    @property
    def data_folder(self) -> Path:
        """Where the service keeps what it must not lose, absolute; it may not be there yet."""
        return (self.data_dir or user_data_path("vision-service", appauthor=False)).absolute()

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Settings from `VISION_*` variables (default: the process environment). Empty values count as unset.

        Raises SettingInvalid naming the variable: unknown names are refused too, with the names that exist.
        """
        environ = os.environ if environ is None else environ
        given = {key[len(PREFIX) :].lower(): value for key, value in environ.items() if key.startswith(PREFIX) and value}
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise SettingInvalid(_explain(error)) from None


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    name = PREFIX + ".".join(str(part) for part in first["loc"]).upper()
    if first["type"] == "extra_forbidden":
        known = ", ".join(PREFIX + field.upper() for field in Settings.model_fields)
        return f"{name} is not a setting; the settings are: {known}"
    if _is_secret(str(first["loc"][0])):
        return f"{name}: {first['msg']}"
    return f"{name}={first['input']!r}: {first['msg']}"


def _is_secret(field: str) -> bool:
    return SecretStr in get_args(Settings.model_fields[field].annotation)
