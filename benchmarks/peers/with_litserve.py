"""LitServe: a worker process for each core, batches of at most 8 collected for 2 ms. The form's field must be called `request`."""

# /// script
# dependencies = [
#     "fastapi==0.165.0",
#     "httptools==0.9.0",
#     "litserve==0.2.19",
#     "python-multipart==0.0.34",
#     "uvicorn==0.54.0",
#     "uvloop==0.23.0",
# ]
# ///

import litserve
import numpy as np
import work
from fastapi import UploadFile
from numpy.typing import NDArray


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe gives it by name
        self.work = work.from_env()

    def decode_request(self, request: UploadFile) -> bytes:
        return request.file.read()

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        return inputs

    def predict(self, photos: list[bytes]) -> list[work.Answer]:
        prepared, ways = zip(*map(self.work.prepare, photos), strict=True)
        outputs: list[NDArray[np.float32]] = self.work.run(np.stack(prepared))
        return [self.work.answer([part[i] for part in outputs], way) for i, way in enumerate(ways)]

    def unbatch(self, output: list[work.Answer]) -> list[work.Answer]:
        return output

    def encode_response(self, output: work.Answer) -> work.Answer:
        return output


if __name__ == "__main__":
    api = Api(max_batch_size=8, batch_timeout=0.002, api_path=f"/{work.TASK}")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=work.CORES, timeout=60)
    server.run(host="127.0.0.1", port=work.PORT, generate_client_file=False, log_level="warning", access_log=False)
