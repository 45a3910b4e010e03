"""Models of text: a Hugging Face directory read, its graph exported and fused, its tokenizer made ready for the service."""
