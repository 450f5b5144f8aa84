"""Who holds which leading blocks of a prompt?"""

from inferencesched.prefix.hashing import block_hashes
from inferencesched.prefix.index import PrefixIndex
from inferencesched.prefix.producer import ApproximatePrefixProducer

__all__ = ["ApproximatePrefixProducer", "PrefixIndex", "block_hashes"]
