"""uniego: nine frozen ego-exo teachers, one encoder that needs the ego video alone."""

__version__ = "0.1.0"
