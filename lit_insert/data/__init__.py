"""Datasets and LightningDataModules; every loader resumes exactly."""
