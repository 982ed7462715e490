"""Nimbus: a Cumulus repository takes images, and nodes boot them after editing them."""
