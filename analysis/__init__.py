"""Reads records; draws figures and prints tables. Never imports torch."""
