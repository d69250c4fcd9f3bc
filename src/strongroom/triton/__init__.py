"""The repository agent of NVIDIA Triton: sealed models in a model repository that an unchanged Triton serves.

``native/agent.c`` is what Triton opens; it hands each action to :mod:`strongroom.triton.agent`. The plaintext
lies in private directories in memory while Triton reads it; ``install`` compiles the agent and places it.
"""
