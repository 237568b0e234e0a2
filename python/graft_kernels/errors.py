"""The one error class of this package."""


class GraftError(RuntimeError):
    """What the C++ library's errors are to C++: `[where] what: expected ..., got ...`, then a hint."""

    def __init__(self, where: str, message: str, hint: str = ""):
        super().__init__(f"[{where}] {message}" + (f"\nhint: {hint}" if hint else ""))
