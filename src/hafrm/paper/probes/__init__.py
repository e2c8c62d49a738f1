"""The paper's smaller measurements on trained models, one per module, each returning a typed result."""
