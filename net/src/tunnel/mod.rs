//! The tunnel: streams between two peers over UDP, encrypted, with loss recovery of its own. Not interception, not dedup.
