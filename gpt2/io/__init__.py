"""Files: safetensors, files written whole or not at all, and pictures."""
