"""Reads and judges the content of disks, without root."""
