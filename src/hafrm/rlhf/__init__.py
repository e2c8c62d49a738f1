"""Reinforcement learning from a reward model: PPO of our own, GRPO and RLOO by TRL, with any `Scorer` as reward."""
