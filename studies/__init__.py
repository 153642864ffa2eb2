"""Experiments behind the README's figures about the verdict: each file is a command that writes below results/."""
