"""Every error a user can meet, as one tree. Knows the wire form of an error, not how it travels.

    TunesmithError                500  server_error
    ├── InvalidRequest            400  invalid_request_error
    │   └── DataError                  invalid_training_file / invalid_validation_file / invalid_n_examples
    ├── AuthenticationFailed      401  invalid_api_key
    ├── PermissionDenied          403
    ├── NotFound                  404
    │   ├── JobNotFound                fine_tune_not_found
    │   ├── FileNotFound               (no code, as OpenAI)
    │   └── ModelNotFound              model_not_found
    ├── PayloadTooLarge           413
    ├── TrainingFailed            500  the run itself cannot go on (non-finite loss, out of memory, ...)
    ├── CheckpointDamaged         500  a checkpoint directory whose manifest does not verify
    ├── LeaseLost                 500  a write whose fence is no longer the job's; never reaches a client
    └── Unavailable               503
        └── DatabaseUnavailable

A message says what is wrong, the offending value, what is accepted, and a hint where there is one.
"""

from __future__ import annotations


class TunesmithError(Exception):
    """Something went wrong that the caller should hear about in these words."""

    status = 500
    type = "server_error"
    code: str | None = None
    param: str | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if param is not None:
            self.param = param
        if code is not None:
            self.code = code

    def envelope(self) -> dict[str, dict[str, str | None]]:
        """Return OpenAI's error body; all four keys are always there."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class InvalidRequest(TunesmithError):
    """A request or an argument that cannot be accepted as it is."""

    status = 400
    type = "invalid_request_error"


class DataError(InvalidRequest):
    """A training or validation file that cannot be trained on."""

    code = "invalid_training_file"


class AuthenticationFailed(TunesmithError):
    """No key, or one that is not ours."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class PermissionDenied(TunesmithError):
    """A request that this server refuses to serve, whoever asks."""

    status = 403
    type = "invalid_request_error"


class NotFound(TunesmithError):
    """There is no such thing."""

    status = 404
    type = "invalid_request_error"


class JobNotFound(NotFound):
    """No job has this id."""

    code = "fine_tune_not_found"
    param = "fine_tune_id"

    def __init__(self, job_id: str) -> None:
        super().__init__(f"Could not find fine tune: {job_id}")


class FileNotFound(NotFound):
    """No file has this id, or it was deleted."""

    param = "id"

    def __init__(self, file_id: str, *, param: str | None = None) -> None:
        super().__init__(f"No such File object: {file_id}", param=param)


class ModelNotFound(NotFound):
    """No base, fine-tuned model or checkpoint has this name."""

    code = "model_not_found"
    param = "model"

    def __init__(self, name: str, hint: str = "") -> None:
        super().__init__(f"The model '{name}' does not exist or you do not have access to it.{' ' + hint if hint else ''}")


class PayloadTooLarge(TunesmithError):
    """A body over the limit; refused before it is parsed."""

    status = 413
    type = "invalid_request_error"


class TrainingFailed(TunesmithError):
    """The run cannot go on; the message says why and what to change."""

    code = "training_failed"


class CheckpointDamaged(TunesmithError):
    """A checkpoint directory is incomplete or its bytes are not those that were written."""


class LeaseLost(TunesmithError):
    """Another attempt owns the job now; nothing was written."""


class Unavailable(TunesmithError):
    """The service cannot answer now; trying again later may work."""

    status = 503
    code = "unavailable"


class DatabaseUnavailable(Unavailable):
    """The database cannot be opened or does not answer. No fault of a job: whoever holds one leaves it as it is."""
