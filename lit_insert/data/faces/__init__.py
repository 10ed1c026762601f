"""Folders of faces: finding them, dressing them, and the recipe that writes the folder."""
