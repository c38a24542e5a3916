"""Ray Serve: one replica for each core, each with a thread of its own for the model."""

# /// script
# dependencies = ["python-multipart==0.0.34", "ray[serve]==2.60.0", "starlette==1.10.0", "uvicorn==0.54.0"]
# ///

import asyncio
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import ray
import work
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse


@serve.deployment(num_replicas=work.CORES, max_ongoing_requests=1000)  # by default a replica takes 5 at a time
class Model:
    def __init__(self) -> None:
        self.work, self.pool = work.from_env(), ThreadPoolExecutor(1)

    async def __call__(self, request: Request) -> JSONResponse:
        async with request.form() as form:
            photo = await form["image"].read()
        return JSONResponse(await asyncio.get_running_loop().run_in_executor(self.pool, self.work, photo))


if __name__ == "__main__":
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=work.CORES, include_dashboard=False, log_to_driver=False, _metrics_export_port=None)
    serve.start(http_options={"host": "127.0.0.1", "port": work.PORT})
    serve.run(Model.bind(), route_prefix=f"/{work.TASK}")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
