"""The only floor that knows onnxruntime: providers, sessions, scheduling."""

import os

# From 1.29 on, onnxruntime keeps a device id and reports usage to its makers unless this is set before it is first imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
