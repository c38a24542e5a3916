"""The model repository: folders with a model.toml, and how each becomes a model.onnx on this machine."""
