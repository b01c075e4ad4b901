"""Text generation: batches of prompts (`generate`), one text token by token (`stream`), conversations (`chat`)."""
