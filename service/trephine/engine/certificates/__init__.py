"""Certificates of exported folders: measured in a clean process, held against gates, told on the card."""
