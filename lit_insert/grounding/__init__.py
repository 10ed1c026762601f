"""From a prompt to the things it names, to their masks in every picture, to which source object became which."""
