"""Fixtures shared by all tests: real models (pulled and built on first use) and real photos that come with test packages."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import skimage
import sklearn.datasets
from numpy.typing import NDArray
from PIL import Image

from service.engine import Engine
from service.loaded import LoadedModel
from service.repository.progress import Silent
from service.repository.store import scan
from service.settings import Settings

PHOTOS = {
    "astronaut": Path(skimage.__file__).parent / "data" / "astronaut.png",
    "chelsea": Path(skimage.__file__).parent / "data" / "chelsea.png",
    "coffee": Path(skimage.__file__).parent / "data" / "coffee.png",
    "rocket": Path(skimage.__file__).parent / "data" / "rocket.jpg",
    "china": Path(sklearn.datasets.__file__).parent / "images" / "china.jpg",
    "flower": Path(sklearn.datasets.__file__).parent / "images" / "flower.jpg",
}
BROWSER_REQUIRED = os.environ.pop("VISION_REQUIRE_BROWSER", "") == "1"  # it is no setting: servers that tests start would refuse it


@pytest.fixture(scope="session")
def browser_required() -> bool:
    """Are tests that find no browser to fail? Else they are skipped."""
    return BROWSER_REQUIRED


@pytest.fixture(scope="session")
def photo_path() -> Callable[[str], Path]:
    """Path of a real photo by its name in PHOTOS."""
    return PHOTOS.__getitem__


@pytest.fixture(scope="session")
def photo() -> Callable[[str], NDArray[np.uint8]]:
    """Pixels of a real photo, RGB, decoded by Pillow."""

    def open_(name: str) -> NDArray[np.uint8]:
        with Image.open(PHOTOS[name]) as image:
            return np.asarray(image.convert("RGB"))

    return open_


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """The real engine on the CPU, exact and not tuned; each model is pulled, built and loaded at its first use."""
    engine = Engine(Settings(device="cpu", precision="float", tune=False, detector="yolov3-tiny"), progress=Silent())
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def loaded(engine: Engine) -> Callable[[str], LoadedModel]:
    """A real loaded model by name."""
    return engine.load


@pytest.fixture(scope="session")
def models(engine: Engine) -> Callable[[str], Path]:
    """Folder of a built model by name."""

    def folder(name: str) -> Path:
        engine.load(name)
        return scan(Settings())[name].folder

    return folder
