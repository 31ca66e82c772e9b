"""What the commands share: exit codes and errors, settings from flags and files, and tables."""
