"""How the service gets onto other machines: the image, what proves it, and what watches it."""
