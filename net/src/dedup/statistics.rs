//! What the dedup layer counts. Bytes unless said otherwise, since the start.

use serde::Serialize;

/// What one direction's sending side did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SenderStatistics {
    /// Bytes taken in.
    pub raw_bytes: u64,
    /// Bytes of blocks given out, headers and digests included.
    pub wire_bytes: u64,
    /// Bytes of control messages given out.
    pub control_bytes: u64,
    /// Blocks that were a run of stored bytes.
    pub copy_blocks: u64,
    /// Blocks sent compressed.
    pub coded_blocks: u64,
    /// Those of them that were searched with less than full effort, because the CPU was the bottleneck.
    pub fast_blocks: u64,
    /// Blocks sent as they were.
    pub raw_blocks: u64,
    /// Bytes that the peer had: found through the anchors and referred to.
    pub copied_bytes: u64,
    /// Bytes found near by while compressing.
    pub matched_bytes: u64,
    /// Bytes that were sent as literals, before compression.
    pub literal_bytes: u64,
    /// Bytes appended to the log.
    pub stored_bytes: u64,
    /// Blocks that the peer asked for again.
    pub refetches: u64,
    /// Bytes of blocks sent again, before compression.
    pub refetched_bytes: u64,
    /// Blocks kept aside because the log ran over them before the peer had confirmed them.
    pub kept_aside: u64,
    /// Blocks asked for again that were gone here too: the flow had been closed long before.
    pub refetches_gone: u64,
    /// Requests for blocks of flows that are gone which were not answered, because too many already waited.
    pub refetches_dropped: u64,
    /// Confirmations and requests for flows that are gone.
    pub stale_messages: u64,
    /// Bytes sent and not confirmed yet (now); a short block counts for what it costs to remember.
    pub unconfirmed_bytes: u64,
    /// Bytes of the log that the peer is known to have (now).
    pub confirmed_bytes: u64,
    /// Flows that are open or not wholly confirmed (now).
    pub flows: u64,
}

/// What one direction's receiving side did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ReceiverStatistics {
    /// Bytes of blocks taken in.
    pub wire_bytes: u64,
    /// Verified bytes that came out.
    pub raw_bytes: u64,
    /// Bytes of control messages given out.
    pub control_bytes: u64,
    /// Blocks verified.
    pub blocks: u64,
    /// Bytes copied from the store.
    pub copied_bytes: u64,
    /// Bytes appended to the store.
    pub stored_bytes: u64,
    /// Bytes that came too late to be stored: the log had moved on by a whole window.
    pub late_bytes: u64,
    /// Blocks fetched again, for whatever reason.
    pub refetches: u64,
    /// Blocks fetched again because bytes they refer to are not in the store.
    pub missing: u64,
    /// Blocks fetched again because what came out did not have the right digest.
    pub mismatches: u64,
    /// Blocks that were refused for good: malformed, or wrong even after fetching them again.
    pub rejected: u64,
    /// Answers that nobody had asked for.
    pub stray_answers: u64,
    /// Times the store was emptied because the peer's log is another one.
    pub cleared: u64,
    /// Times the newest part of the store was dropped because the peer's log had lost it.
    pub cut_back: u64,
    /// Bytes in the store now.
    pub present_bytes: u64,
}

/// What one flow's encoder did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FlowStatistics {
    /// Bytes taken in.
    pub raw_bytes: u64,
    /// Bytes of blocks given out.
    pub wire_bytes: u64,
    /// Bytes that the peer had.
    pub copied_bytes: u64,
    /// Bytes found near by while compressing.
    pub matched_bytes: u64,
    /// Bytes sent as literals, before compression.
    pub literal_bytes: u64,
    /// Blocks of each sort: copies.
    pub copy_blocks: u64,
    /// Compressed blocks.
    pub coded_blocks: u64,
    /// Blocks sent as they were.
    pub raw_blocks: u64,
}
