"""The one exception of nftk.data and the form of its sentence."""


class DataError(ValueError):
    """A file or a data set that cannot be used; its text is one sentence for the person who named the file."""


def sentence(where: object, subject: str, rule: str, found: object) -> str:
    """Return the house form of a data error: what, in which file, must be how, and what was found."""
    return f"nftk.data: {where}: {subject} must {rule}, got {found}"


def reason(error: BaseException) -> str:
    """Return why an operation failed, in one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    lines = text.splitlines() or [type(error).__name__]
    return lines[0].strip()
