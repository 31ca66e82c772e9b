"""How fast it is, against what else there is, on the machine at hand."""
