"""The paper's figures, and ours beside them in its tables and plots."""
