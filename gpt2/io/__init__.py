"""Files: safetensors, pictures, and files that are written as a whole or not at all."""
