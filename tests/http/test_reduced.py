"""Which requests may be answered from fewer pixels: classifications, and detections that are not drawn."""

from typing import Any

import pytest

from service.errors import ImageDamaged
from service.http.negotiation import JSON
from service.http.tasks import TASKS, Task
from service.http.uploads import Upload
from service.settings import Settings


class Recorder:
    """An engine that remembers what it was asked to decode for, and goes no further."""

    settings = Settings()
    asked: Any = None

    def decode(self, image: Any, enough_for: Any = None) -> Any:
        self.asked = enough_for
        raise ImageDamaged("enough")


@pytest.mark.parametrize(("task", "media"), [(task, media) for task in TASKS for media in task.offers])
def test_only_what_is_not_drawn_looked_at_closely_or_painted(task: Task[Any], media: str) -> None:
    engine, options = Recorder(), task.options()
    with pytest.raises(ImageDamaged):
        task.answer_upload(engine, Upload({"image": b""}, options), media, 0.0)  # type: ignore[arg-type]
    assert (engine.asked is options) == (task.path in {"/classify", "/detect"} and media == JSON)
    assert engine.asked is None or engine.asked is options
