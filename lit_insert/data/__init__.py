"""Datasets and LightningDataModules; every loader resumes exactly."""

import os

# Arrow's own allocator holds on to the memory of row groups that were dropped; Arrow reads this when first imported.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
