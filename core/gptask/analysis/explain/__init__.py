"""Why a run predicts what it predicts: attributions to the words of an input, and how faithful they are."""
