"""FastAPI on uvicorn, the model called on a pool of threads: BENCH_WORKERS processes, BENCH_THREADS threads in each."""

# /// script
# dependencies = ["fastapi==0.165.0", "httptools==0.9.0", "python-multipart==0.0.34", "uvicorn==0.54.0", "uvloop==0.23.0"]
# ///

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

import uvicorn
import work
from fastapi import FastAPI, File, UploadFile
from fastapi.responses import JSONResponse


def create_app() -> FastAPI:
    app, run = FastAPI(), work.from_env()
    pool = ThreadPoolExecutor(int(os.environ["BENCH_THREADS"]))

    @app.post(f"/{work.TASK}")
    async def answer(image: Annotated[UploadFile, File()]) -> JSONResponse:
        photo = await image.read()
        return JSONResponse(await asyncio.get_running_loop().run_in_executor(pool, run, photo))

    return app


if __name__ == "__main__":
    workers = int(os.environ["BENCH_WORKERS"])
    uvicorn.run("with_fastapi:create_app", factory=True, port=work.PORT, workers=workers, access_log=False, log_level="warning")
