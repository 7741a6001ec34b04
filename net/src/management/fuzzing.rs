//! A window into the request parser for the fuzz targets in `net/fuzz`. Nothing else uses it.

use alloc::string::String;

use super::http;

/// The longest request head that is read, in bytes.
pub const MOST_REQUEST: usize = http::MOST_REQUEST;

/// What a request comes to; `None`: it is not all there yet.
pub fn request(bytes: &[u8]) -> Option<String> {
    http::parse(bytes).map(|request| alloc::format!("{request:?}"))
}
