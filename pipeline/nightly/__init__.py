"""Nights of a build server: many appliances, built, published and reported unattended."""
