"""The only floor that knows onnxruntime: providers, sessions, scheduling."""
