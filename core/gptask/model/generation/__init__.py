"""Prompts to texts: generate, stream, chat."""
