"""Ways to run a .tflite graph, behind one small interface (`base`); `select` picks the one that fits."""
