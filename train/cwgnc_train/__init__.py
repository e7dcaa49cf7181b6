"""Fine-tuning of pretrained encoders with component-wise gradient norm clipping."""
