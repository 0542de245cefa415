"""Reviews in a compressed file, one JSON object a line."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from nftk.data.arrays import MAX_BYTES
from nftk.data.errors import DataError, reason, sentence

# the longest of the 50,000 has 14 kB; a file without line ends stops here instead of in the allocator
MAX_LINE = 1 << 24


def read_reviews(path: Path, advance: Callable[[int], None]) -> Iterator[tuple[str, int]]:
    """Yield text and label of each line, and tell advance how many compressed bytes were read for it.

    Raises:
        DataError: If the file cannot be read, is no whole gzip stream, or a line is no JSON object with a text that
            is not empty and a label that is 0 or 1.

    """
    number = total = position = 0
    try:
        with open(path, "rb") as file, gzip.GzipFile(fileobj=file) as stream:
            while line := stream.readline(MAX_LINE):
                number, total = number + 1, total + len(line)
                if len(line) == MAX_LINE:
                    raise DataError(_line(path, number, f"be shorter than {MAX_LINE} bytes", "more"))
                if total > MAX_BYTES:
                    raise DataError(_line(path, number, f"be within the first {MAX_BYTES} bytes", "more"))
                yield _parse(line, path, number)
                position, last = file.tell(), position
                advance(position - last)
    except EOFError as error:
        found = f"one that breaks off after line {number}"
        raise DataError(sentence(path, "file", "be a whole gzip stream", found)) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        found = f"after line {number}: {reason(error)}"
        raise DataError(sentence(path, "file", "be an intact gzip stream", found)) from error
    except OSError as error:
        raise DataError(sentence(path, "file", "be readable", reason(error))) from error
    if not number:
        raise DataError(sentence(path, "file", "hold at least one review", "no line"))


def _parse(line: bytes, path: Path, number: int) -> tuple[str, int]:
    try:
        review = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        found = f"byte 0x{line[error.start]:02x} in column {error.start + 1}"
        raise DataError(_line(path, number, "be UTF-8", found)) from error
    except (ValueError, RecursionError) as error:
        raise DataError(_line(path, number, "be a JSON object", reason(error))) from error
    if not isinstance(review, dict):
        raise DataError(_line(path, number, "be a JSON object", type(review).__name__))
    for key in ("text", "label"):
        if key not in review:
            raise DataError(_line(path, number, "have a text and a label", f"no {key}"))
    text, label = review["text"], review["label"]
    if not isinstance(text, str) or not text:
        raise DataError(_line(path, number, "have a text that is a string and not empty", f"{text!r:.60}"))
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(_line(path, number, "have a text of whole characters", ascii(text[error.start]))) from error
    # not bool, which is an int
    if type(label) is not int or label not in (0, 1):
        raise DataError(_line(path, number, "have a label that is 0 or 1", f"{label!r:.60}"))
    return text, label


def _line(path: Path, number: int, rule: str, found: object) -> str:
    return sentence(path, f"line {number}", rule, found)
