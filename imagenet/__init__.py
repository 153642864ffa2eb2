"""The ImageNet experiment (section 6): plan -> tree -> audit."""
