"""Replacing the person of a photo: by another cut-out, by a prompt or class, or by a reference picture."""
