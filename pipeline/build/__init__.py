"""A plan walked to a manifest."""
