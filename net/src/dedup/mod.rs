//! Dedup: bytes become copies of what the peer already has, and literals. Not transport, not storage media.
