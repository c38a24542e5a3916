"""The face to the network: knows HTTP, knows nothing of tensors."""
