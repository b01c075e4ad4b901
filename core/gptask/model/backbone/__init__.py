"""The backbone: where it comes from (`source`), the model and its tokenizer (`model`), what learns (`tuning`)."""
