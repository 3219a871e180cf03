"""The error tree; every message says what was wrong and what would be right.

    SafelightError                500
    ├── InvalidRequest            400   the request cannot be satisfied as it is
    │   ├── InvalidFields         400   several errors of one request; their own status if they share one
    │   ├── InvalidField          400   one field of a request
    │   ├── InvalidImage          400   not a picture, or not one that is safe to open
    │   ├── UnsupportedOption     400   a known option that this model, sampler or machine cannot honour
    │   ├── InvalidCertificate    400   pictures cannot be signed with it, or nobody could verify the signature
    │   ├── MissingExtra          400   it needs packages that are not installed
    │   ├── UnknownModel          404
    │   ├── UnknownVersion        404   nothing is registered under that name, number or alias
    │   ├── UnknownSampler        404
    │   ├── UnknownLora           404
    │   ├── IncompatibleLora      400   made for another kind of model
    │   ├── UnknownControl        404   no ControlNet, IP-Adapter, image encoder or face model of that name
    │   ├── IncompatibleControl   400   made for another kind of model
    │   ├── UnknownPart           404   an autoencoder or a text encoder
    │   ├── UnknownAsset          404
    │   └── UnknownJob            404
    ├── Unauthorized              401   no key, or one that is not valid
    ├── Forbidden                 403   a key that may not do this
    ├── IdempotencyConflict       409   an idempotency key that was used for another request
    ├── TooSlow                   408   a body that did not arrive in time
    ├── TooLarge                  413   a body beyond the limit
    ├── TooManyRequests           429   the queue, the rate or the quota is full; `retry_after_s` says for how long
    ├── UnsafeFile                400   weights in a format that can carry code
    ├── CorruptModel              422   a checkpoint that is incomplete or damaged
    ├── CorruptAsset              500   a stored picture has changed since it was stored
    ├── OutOfMemory               503   one picture alone does not fit on the device
    ├── EngineStopped             503   the engine was closed or failed; another one may run the job
    ├── NotReady                  503   the server should not be sent work now
    ├── SigningFailed             503   a picture could not be signed, and is not given out unsigned
    ├── StorageFailed             507   the picture could not be written
    ├── JobFailed                 500   the network produced something that is not a picture
    └── JobCancelled              499   the caller, or Ctrl-C, stopped the job

Errors of callers and of the environment are raised as these; a bug of ours is an `assert` or a plain crash.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches

MAX_LISTED = 20


class SafelightError(Exception):
    """Root of the tree; `status` is the HTTP status, `code` a stable name that clients can test for."""

    status: int = 500
    code: str = "internal_error"
    param: str | None = None
    """The invalid field under the caller's name for it, if there is one."""


class InvalidRequest(SafelightError):
    status, code = 400, "invalid_request"


class InvalidField(InvalidRequest):
    """An invalid field; a dialect may rename the field later (`validation.rename_fields`).

    Args:
        others: the fields that it conflicts with.
    """

    def __init__(self, field: str, reason: str, *others: str) -> None:
        super().__init__(reason)
        self.param = field
        self.reason = reason
        self.fields: tuple[str, ...] = (field, *others)

    def __str__(self) -> str:
        return f"{self.param}: {self.reason}"


class InvalidFields(InvalidRequest):
    """All errors of one request."""

    def __init__(self, errors: Sequence[SafelightError]) -> None:
        assert errors
        super().__init__()
        self.errors = list(errors)
        statuses, codes = {error.status for error in errors}, {error.code for error in errors}
        self.status = statuses.pop() if len(statuses) == 1 else 422 if 422 in statuses else 400
        self.code = codes.pop() if len(codes) == 1 else InvalidRequest.code

    def __str__(self) -> str:
        return "; ".join(map(str, self.errors))

    @property
    def param(self) -> str | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return next((error.param for error in self.errors if error.param), None)

    def simplified(self) -> SafelightError:
        """The only error, if there is just one; otherwise this."""
        return self.errors[0] if len(self.errors) == 1 else self


class InvalidImage(InvalidRequest):
    status, code = 400, "invalid_image"


class UnsupportedOption(InvalidField):
    status, code = 400, "unsupported_option"


class InvalidCertificate(InvalidRequest):
    status, code = 400, "invalid_certificate"


class MissingExtra(InvalidRequest):
    status, code = 400, "missing_extra"

    def __init__(self, what: str, *extras: str) -> None:
        super().__init__(f"{what}: {install(*extras)}")


class UnknownModel(InvalidRequest):
    status, code = 404, "unknown_model"

    def __init__(self, name: str, known: list[str], *, kind: str = "model") -> None:
        listed = ", ".join(known[:MAX_LISTED]) + (", ..." if len(known) > MAX_LISTED else "")
        super().__init__(f"no {kind} named {name!r}{nearest(name, known)}; known: {listed or 'none'}")
        self.param = "model" if kind == "model" else None


class UnknownVersion(InvalidRequest):
    status, code = 404, "unknown_version"

    def __init__(self, reference: str, known: list[str]) -> None:
        super().__init__(
            f"no version {reference!r} is registered{nearest(reference, known)}; `safelight models list` lists all"
        )


class UnknownSampler(InvalidRequest):
    status, code = 404, "unknown_sampler"
    param = "sampler"

    def __init__(self, name: str, known: list[str]) -> None:
        super().__init__(f"no sampler named {name!r}{nearest(name, known)}; `safelight samplers` lists all")


class UnknownLora(InvalidRequest):
    status, code = 404, "unknown_lora"

    def __init__(self, name: str, known: list[str]) -> None:
        listed = f"; `safelight lora list` lists {len(known)}" if known else "; there are none in SAFELIGHT_HOME/loras"
        super().__init__(f"no LoRA named {name!r}{nearest(name, known)}{listed}")


class IncompatibleLora(InvalidRequest):
    status, code = 400, "incompatible_lora"

    def __init__(self, name: str, reason: str, *, model: str, made_for: str | None) -> None:
        seems = f"; it seems made for {made_for}" if made_for else ""
        super().__init__(f"LoRA {name} does not fit {model}: {reason}{seems}")


class UnknownControl(InvalidRequest):
    status, code = 404, "unknown_control"

    def __init__(self, kind: str, name: str, known: list[str], *, folder: str) -> None:
        listed = f"; known: {', '.join(known)}" if known else f"; there are none in {folder}"
        super().__init__(f"no {kind} named {name!r}{nearest(name, known)}{listed}")


class IncompatibleControl(InvalidRequest):
    status, code = 400, "incompatible_control"

    def __init__(self, name: str, reason: str, *, model: str, made_for: str | None = None) -> None:
        seems = f"; it seems made for {made_for}" if made_for else ""
        super().__init__(f"{name} does not fit {model}: {reason}{seems}")


class UnknownPart(InvalidField):
    status, code = 404, "unknown_part"

    def __init__(self, part: str, name: str, known: list[str]) -> None:
        where = f"give a file or folder of SAFELIGHT_HOME/{part}s, a path, or a model's name"
        super().__init__(part, f"no {part} named {name!r}{nearest(name, known)}; {where}")


class UnknownAsset(InvalidRequest):
    status, code = 404, "unknown_asset"


class UnknownJob(InvalidRequest):
    status, code = 404, "unknown_job"


class Unauthorized(SafelightError):
    status, code = 401, "invalid_api_key"


class Forbidden(SafelightError):
    status, code = 403, "forbidden"


class IdempotencyConflict(SafelightError):
    status, code = 409, "idempotency_conflict"


class TooSlow(SafelightError):
    status, code = 408, "request_timeout"


class TooLarge(SafelightError):
    status, code = 413, "too_large"


class TooManyRequests(SafelightError):
    status, code = 429, "too_many_requests"

    def __init__(self, message: str, *, retry_after_s: float, code: str = "too_many_requests") -> None:
        super().__init__(f"{message}; try again in {retry_after_s:.0f} s")
        self.retry_after_s = retry_after_s
        self.code = code


class UnsafeFile(SafelightError):
    status, code = 400, "unsafe_file"


class CorruptModel(SafelightError):
    status, code = 422, "corrupt_model"


class CorruptAsset(SafelightError):
    status, code = 500, "corrupt_asset"


class OutOfMemory(SafelightError):
    status, code = 503, "out_of_memory"


class EngineStopped(SafelightError):
    status, code = 503, "engine_stopped"


class NotReady(SafelightError):
    status, code = 503, "not_ready"


class SigningFailed(SafelightError):
    status, code = 503, "signing_failed"


class StorageFailed(SafelightError):
    status, code = 507, "storage_failed"


class JobFailed(SafelightError):
    status, code = 500, "job_failed"


class JobCancelled(SafelightError):
    status, code = 499, "cancelled"


def install(*extras: str) -> str:
    """The shell command that installs these extras."""
    return f"pip install 'safelight[{','.join(extras)}]'"


@contextmanager
def needing(*extras: str) -> Generator[None, None, None]:
    """Context for imports that need these extras.

    Raises:
        MissingExtra: a package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "safelight").partition(".")[0] == "safelight":
            raise  # a bug of ours
        raise MissingExtra(f"{error.name} is missing", *extras) from None


def nearest(name: str, known: list[str]) -> str:
    """`; did you mean 'Euler a'?`, or "" if no known name is close."""
    by_folded = {candidate.casefold(): candidate for candidate in known}
    close = get_close_matches(name.casefold(), by_folded, n=2, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(by_folded[match]) for match in close)}?" if close else ""
