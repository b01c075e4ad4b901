"""The engines: `interface` says what one does, `reference` does it by plain libraries, `fast` by its own parts."""
