"""Reinforcement learning from a reward model: our own PPO, and TRL's GRPO and RLOO, with any `Scorer` as reward."""
