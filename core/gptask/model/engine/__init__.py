"""The fast path through a decoder: attention, packing, fused LoRA, decoding."""
