"""Shared by all tests: no network, and helpers of this folder importable by name."""

import os

# Before any test imports a library that reads it.
os.environ["HF_HUB_OFFLINE"] = "1"
