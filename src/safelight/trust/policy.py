"""Which marks finished pictures carry: an operator's choice for all of them, never a caller's."""

import re
from dataclasses import dataclass
from typing import Literal, Self, get_args

from safelight.errors import InvalidRequest
from safelight.settings import PREFIX, Settings

Profile = Literal["eu", "cn"]
PROFILES: tuple[Profile, ...] = get_args(Profile)
Timestamp = Literal["off", "best-effort", "required"]
Oversight = Literal["auto", "fully_autonomous", "prompt_guided", "human_validated"]
Training = Literal["unstated", "allowed", "not-allowed"]
PRODUCER = re.compile(r"[!#-\[\]-~]{1,200}")
"""What a value of China's label may hold: ASCII 0x21 to 0x7E, without quotes and backslashes (TC260-PG-20259A)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    signature: bool = True
    watermark: bool = True
    profiles: frozenset[Profile] = frozenset({"eu"})
    producer: str = ""
    timestamp: Timestamp = "off"
    timestamp_url: str = ""
    oversight: Oversight = "auto"
    training: Training = "unstated"
    prompt: bool = False
    """Whether the prompt is signed too, where the metadata is full."""

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """
        Raises:
            InvalidRequest: settings that contradict each other, by their names.
        """
        named = dict.fromkeys(settings.trust_profiles.split())
        if unknown := named.keys() - set(PROFILES):
            raise InvalidRequest(
                f"{PREFIX}TRUST_PROFILES: no profile {', '.join(sorted(unknown))}; there are {', '.join(PROFILES)}"
            )
        if "cn" in named and not PRODUCER.fullmatch(settings.trust_producer):
            raise InvalidRequest(
                f"{PREFIX}TRUST_PRODUCER: the profile cn needs the name or code of whoever offers the service, in "
                f"ASCII without blanks, quotes and backslashes (got {settings.trust_producer!r})"
            )
        if settings.trust_timestamp != "off" and not re.match(r"https?://.", settings.trust_timestamp_url):
            raise InvalidRequest(
                f"{PREFIX}TRUST_TIMESTAMP_URL: {PREFIX}TRUST_TIMESTAMP={settings.trust_timestamp} needs the address of "
                f"a time stamp authority, http:// or https:// (got {settings.trust_timestamp_url!r})"
            )
        return cls(
            signature=settings.trust_signature,
            watermark=settings.trust_watermark,
            profiles=frozenset(profile for profile in PROFILES if profile in named),
            producer=settings.trust_producer,
            timestamp=settings.trust_timestamp,
            timestamp_url=settings.trust_timestamp_url,
            oversight=settings.trust_oversight,
            training=settings.trust_training,
            prompt=settings.trust_prompt,
        )
