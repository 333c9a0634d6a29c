"""Models of Hugging Face's transformers: loading, saving, conversion."""
