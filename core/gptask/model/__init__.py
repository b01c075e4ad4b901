"""The shared GPT: its backbone, the engine that computes it, text generation, heads and text tasks."""
