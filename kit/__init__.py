"""What any Python program has: errors, files, progress, command lines, plots."""
