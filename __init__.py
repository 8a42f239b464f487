"""knobctl: cheap settings for mixture-of-experts vision-language models, learned in minutes from a cache."""

__version__ = "0.1.0"
