"""Pure functions on tensors: the operations that the training step is made of."""
