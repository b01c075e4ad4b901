"""The shared GPT: engine, backbone, generation, heads."""
