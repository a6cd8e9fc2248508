"""The Open Inference Protocol as Triton's clients speak it, on the same models, validation and engine as our own services."""
