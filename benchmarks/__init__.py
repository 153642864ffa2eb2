"""Speed and memory, each as a ratio to the reference way in the same run; `python -m benchmarks.NAME`."""
