"""How fast and how accurate minigrad and gpt2 are on this machine, compared with other libraries."""
