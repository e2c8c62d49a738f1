"""Training: one trainer for the hybrid, the plain reward model and DPO, which differ only in two loss weights."""
