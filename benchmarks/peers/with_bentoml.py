"""BentoML: one worker process, its synchronous API on as many threads as there are cores. It hands over files, not bytes."""

# /// script
# dependencies = ["bentoml==1.4.39", "python-multipart==0.0.34", "starlette==1.10.0", "uvicorn==0.54.0"]
# ///

import os
import sys
from pathlib import Path

import bentoml
import work


@bentoml.service(workers=1, threads=work.CORES, traffic={"timeout": 60})
class Model:
    def __init__(self) -> None:
        self.work = work.from_env()

    @bentoml.api(route=f"/{work.TASK}")
    def answer(self, image: Path) -> work.Answer:
        return self.work(image.read_bytes())


if __name__ == "__main__":
    os.environ |= {"BENTOML_DO_NOT_TRACK": "True", "PYTHONPATH": os.pathsep.join(sys.path)}
    place = ["--host", "127.0.0.1", "--port", str(work.PORT)]
    os.execv(sys.executable, [sys.executable, "-m", "bentoml", "serve", f"{Path(__file__).stem}:Model", *place])
