"""Weights in, ONNX out: one recipe a model family. Needs onnx and numpy, no deep-learning framework."""
