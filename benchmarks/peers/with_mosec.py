"""mosec: one stage, one process for each core. Its Rust server hands over bodies as they came."""

# /// script
# dependencies = ["mosec==0.9.8", "msgspec==0.22.0"]
# ///

import sys

import work
from mosec import Server, Worker


class Model(Worker):
    def __init__(self) -> None:
        super().__init__()
        self.work = work.from_env()

    def deserialize(self, data: bytes) -> bytes:
        return work.only_part(data)

    def forward(self, data: bytes) -> work.Answer:
        return self.work(data)


if __name__ == "__main__":
    sys.argv += ["--port", str(work.PORT), "--address", "127.0.0.1", "--timeout", "60000", "--log-level", "warning"]
    server = Server()
    server.append_worker(Model, num=work.CORES, route=f"/{work.TASK}")
    server.run()
