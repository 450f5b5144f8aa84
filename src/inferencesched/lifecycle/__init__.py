"""What becomes of a request once it was sent?"""

from inferencesched.lifecycle.responses import Progress, ResponseReader
from inferencesched.lifecycle.retry import RETRYABLE, RetryPolicy

__all__ = ["RETRYABLE", "Progress", "ResponseReader", "RetryPolicy"]
