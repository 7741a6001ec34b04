//! This binary in memory: where the firmware put it and which of its sections are code (PE/COFF specification).

use alloc::vec::Vec;

use outpost::memory::Run;
use uefi::boot::{self, OpenProtocolAttributes, OpenProtocolParams};
use uefi::proto::loaded_image::LoadedImage;

use crate::machine::paging::Section;

/// Base address and length of this binary in memory.
pub fn place() -> (u64, u64) {
    // SAFETY: only two fields are read.
    let image = unsafe {
        boot::open_protocol::<LoadedImage>(
            OpenProtocolParams {
                handle: boot::image_handle(),
                agent: boot::image_handle(),
                controller: None,
            },
            OpenProtocolAttributes::GetProtocol,
        )
    };
    image.map_or((0, 0), |image| {
        let (base, bytes) = image.info();
        (base as u64, bytes)
    })
}

/// The sections of the binary at `base`; none if its headers make no sense.
pub fn sections(base: u64, bytes: u64) -> Vec<Section> {
    /// The headers of a binary with a handful of sections lie in its first page.
    const HEADER_BYTES: usize = 4096;
    if base == 0 || bytes < HEADER_BYTES as u64 {
        return Vec::new();
    }
    // SAFETY: the firmware loaded this binary, headers first, to `base`.
    let headers = unsafe { core::slice::from_raw_parts(base as *const u8, HEADER_BYTES) };
    outpost::pe::sections(headers)
        .into_iter()
        .map(|section| Section {
            run: Run {
                start: base + u64::from(section.offset),
                end: base + u64::from(section.offset) + u64::from(section.bytes),
            },
            code: section.code,
            writable: section.writable,
        })
        .collect()
}
