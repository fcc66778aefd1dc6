"""Forecast every new radar cycle as it comes, publish it whole or not at all, and report on a status page."""
