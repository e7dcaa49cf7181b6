"""Fine-tuning of encoders with component-wise clipping: ``python -m train``."""
