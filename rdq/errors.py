"""The one exception of the package."""


class RdqError(ValueError):
    """What cannot be used, on one line: `where: what is wrong; what to do instead`."""
