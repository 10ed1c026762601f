"""Reference-guided insertion: image tokens of an object become the text conditioning of InstructPix2Pix."""
