"""What others can check of a build without us: what is in it, how it was made, and who says so."""
