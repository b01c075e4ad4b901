"""The backbone: model and tokenizer.

`locate`, `gguf` and `scratch` say where it comes from, `backbone` is the model in memory, `tuning` chooses what learns.
"""
