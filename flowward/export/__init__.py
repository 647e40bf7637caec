"""Weights for diffusers: LoRA adapters and merged models with their card, and the policy of a run or an export."""
