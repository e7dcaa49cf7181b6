"""Comparisons with the torch version and with the peers."""
