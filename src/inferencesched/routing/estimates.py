"""How many tokens is a picture, a video or a sound, where nobody has the model's processor?

By its pixels, its frames, its length: what headers tell of them, else what is usual. Source: llm-d-router, ``token-producer`` with the
backend ``estimate``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, inf
from typing import Final, Literal, NamedTuple

from inferencesched.errors import InvalidInputError

FPS_HEADER: Final = "x-llm-d-video-fps"
DURATION_HEADER: Final = "x-llm-d-video-duration-seconds"
RESOLUTION_HEADER: Final = "x-llm-d-video-resolution"


class VideoMetadata(NamedTuple):
    """What is known of a video? 0 is unknown."""

    width: int = 0
    height: int = 0
    duration: float = 0.0
    fps: float = 0.0


def video_metadata(headers: Mapping[str, str]) -> VideoMetadata:
    """Return what a request's headers tell of its video; what cannot be read, or is not above 0, is unknown.

    >>> video_metadata({"x-llm-d-video-resolution": " 800 x 600 ", "x-llm-d-video-fps": "abc"})
    VideoMetadata(width=800, height=600, duration=0.0, fps=0.0)
    """
    width, by, height = headers.get(RESOLUTION_HEADER, "").lower().partition("x")
    across, down = (_number(width), _number(height)) if by else (0.0, 0.0)
    if not across or not down:
        across = down = 0.0
    return VideoMetadata(
        int(across), int(down), _number(headers.get(DURATION_HEADER, "")), _number(headers.get(FPS_HEADER, ""))
    )


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if 0 < value < inf else 0.0


@dataclass(frozen=True, slots=True)
class FrameTokens:
    """How many tokens is one picture? Its pixels over `factor`; or `static`, whatever its size. Unknown sizes are `width` by `height`."""

    factor: float = 1024.0
    static: int | None = None
    width: int = 640
    height: int = 360

    def __post_init__(self) -> None:
        if not 0 < self.factor < inf:
            raise InvalidInputError("factor", self.factor, "a finite number above 0")
        if self.static is not None and self.static < 0:
            raise InvalidInputError("static", self.static, "an integer of at least 0, or None")
        if self.width < 1 or self.height < 1:
            raise InvalidInputError("width", (self.width, self.height), "integers of at least 1")

    def tokens(self, width: int = 0, height: int = 0) -> int:
        """Return the tokens of a picture of this size, 0 where it is unknown.

        >>> FrameTokens().tokens(), FrameTokens(factor=2048).tokens(), FrameTokens().tokens(1024, 1024)
        (225, 112, 1024)
        """
        if self.static is not None:
            return self.static
        across, down = (width, height) if width and height else (self.width, self.height)
        return int(across * down / self.factor)


@dataclass(frozen=True, slots=True)
class VideoTokens:
    """How many tokens is a video? Frames times tokens a frame.

    Parameters
    ----------
    frames: ``sampled`` takes `sample_fps` frames a second, merged `temporal_patch` into one; ``strided`` every `stride`-th of its own.
    duration, source_fps: of a video of which it is unknown.
    least, most: frames before merging; `most_tokens` in all.

    >>> VideoTokens().tokens(VideoMetadata(320, 240, 3.0))
    450
    """

    frame: FrameTokens = FrameTokens()
    frames: Literal["sampled", "strided"] = "sampled"
    sample_fps: float = 2.0
    temporal_patch: int = 1
    stride: int = 1
    duration: float = 10.0
    source_fps: float = 24.0
    least: int = 1
    most: int | None = None
    most_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("sample_fps", "duration", "source_fps"):
            value = getattr(self, name)
            if not 0 < value < inf:
                raise InvalidInputError(name, value, "a finite number above 0")
        for name in ("temporal_patch", "stride"):
            if getattr(self, name) < 1:
                raise InvalidInputError(name, getattr(self, name), "an integer of at least 1")

    def tokens(self, known: VideoMetadata = VideoMetadata()) -> int:  # noqa: B008  a tuple
        """Return the tokens of a video of which this much is known. How many frames a sampled one has does not matter."""
        seconds = known.duration or self.duration
        if self.frames == "sampled":
            count = seconds * self.sample_fps
        else:
            count = seconds * (known.fps or self.source_fps) / self.stride
        number = max(self.least, int(count), 1)
        if self.most is not None:
            number = min(number, self.most)
        if self.frames == "sampled":
            number = ceil(number / self.temporal_patch)
        total = number * self.frame.tokens(known.width, known.height)
        return total if self.most_tokens is None else min(total, self.most_tokens)


def audio_tokens(payload_bytes: int) -> int:
    """Return the tokens of a sound of so many bytes: four are one, as of text.

    >>> audio_tokens(10)
    3
    """
    return ceil(payload_bytes / 4)
