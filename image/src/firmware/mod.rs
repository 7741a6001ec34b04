//! The firmware phase: everything that UEFI boot services are good for, up to leaving them. What was learnt is a [`Findings`].

mod disk;
mod guest;
mod image;

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use outpost::acpi::{self, Tables};
use outpost::memory::Run;
use outpost_config::Config;
use uefi::boot::{self, AllocateType, OpenProtocolAttributes, OpenProtocolParams};
use uefi::fs::{self, FileSystem};
use uefi::mem::memory_map::{MemoryMap, MemoryType};
use uefi::proto::console::gop::{GraphicsOutput, PixelFormat};
use uefi::proto::rng::Rng;
use uefi::table::cfg::ConfigTableEntry;
use uefi::{cstr16, runtime, system};

pub use disk::BootDisk;
pub use guest::{Check as GuestCheck, GuestFiles};
pub use image::sections;

use disk::Prepared;

use crate::machine::{clock, entropy, heap, power};
use crate::output;
use crate::output::screen::Screen;

/// The heap until the memory map is ours: configuration, page tables, stacks.
const FIRST_HEAP_BYTES: usize = 8 << 20;
const PAGE: usize = 4096;
/// Other CPUs start in two pages below this.
const START_UP_BELOW: u64 = 0xa_0000;

/// What the firmware phase found out.
pub struct Findings {
    /// The configuration, or why there is none.
    pub config: Result<Config, String>,
    /// The guest's files; none if the configuration wants no guest; else why they cannot be had.
    pub guest: Option<Result<GuestFiles, String>>,
    /// The disk that the box was started from; none if there is no partition for the dictionary on it.
    pub disk: Option<BootDisk>,
    /// ACPI's tables; empty if there are none.
    pub tables: Tables,
    /// Two free pages below 1 MiB.
    pub start_up: Option<u64>,
    /// Everything that is memory, of whatever kind.
    pub memory: Vec<Run>,
    /// Memory that is free once the firmware is gone.
    pub free: Vec<Run>,
    /// This binary's sections.
    pub image_base: u64,
    /// Bytes of this binary in memory.
    pub image_bytes: u64,
}

/// Gives the heap its first piece. The very first thing.
pub fn start_heap() {
    if let Ok(start) = boot::allocate_pages(
        AllocateType::AnyPages,
        MemoryType::LOADER_DATA,
        FIRST_HEAP_BYTES / PAGE,
    ) {
        // SAFETY: the firmware has just given us these pages, and they are never given back.
        unsafe { heap::claim(start.as_ptr() as u64, FIRST_HEAP_BYTES as u64) };
    }
}

/// Does everything there is to do with the firmware, then leaves its boot services.
pub fn leave() -> Findings {
    // The firmware resets a box whose loader takes longer than five minutes; reading from a slow stick must not count.
    let _ = boot::set_watchdog_timer(0, 0x1_0000, None);
    let rsdp = find_rsdp();
    let tables = rsdp.map_or_else(Tables::default, read_tables);
    let calibration = clock::calibrate(tables.pm_timer);
    power::set_reset_register(tables.reset);
    if let Some(screen) = find_screen() {
        output::add_screen(screen);
    }
    output::telemetry::milestone("start");
    log::info!(
        "Outpost {} on {} {:#x}",
        env!("CARGO_PKG_VERSION"),
        system::firmware_vendor(),
        system::firmware_revision()
    );
    if tables.cpus.is_empty() {
        // Not a thing the user can act on, nor one that takes anything away.
        log::info!("acpi: no table of CPUs: they are counted by asking");
    }
    set_wall_clock();
    if !entropy::gather(firmware_random()) {
        output::problem(
            "neither CPU (RDRAND) nor firmware has a random number generator: keys come from timer jitter only",
        );
    }
    let config = read_config();
    // The disk is made ready even if no guest is wanted.
    let mut prepared = disk::prepare();
    let boot_disk = prepared.as_ref().ok().and_then(Prepared::boot_disk);
    let guest = match (&config, &mut prepared) {
        (
            Ok(Config {
                guest: Some(guest), ..
            }),
            Ok(prepared),
        ) => Some(guest::load(&guest.name, prepared)),
        (Ok(Config { guest: Some(_), .. }), Err(why)) => Some(Err(why.clone())),
        (_, Ok(_)) => None,
        (_, Err(why)) => {
            output::problem(why);
            None
        }
    };
    drop(prepared);
    let start_up = boot::allocate_pages(
        AllocateType::MaxAddress(START_UP_BELOW - 1),
        MemoryType::LOADER_DATA,
        2,
    )
    .ok()
    .map(|page| page.as_ptr() as u64);
    let (image_base, image_bytes) = image::place();
    let source = calibration.finish();
    log::info!(
        "clock: time-stamp counter at {} kHz ({source:?})",
        clock::tsc_hz() / 1000
    );
    let (memory, free) = exit_boot_services();
    output::telemetry::milestone("firmware-left");
    Findings {
        config,
        guest,
        disk: boot_disk,
        tables,
        start_up,
        memory,
        free,
        image_base,
        image_bytes,
    }
}

fn exit_boot_services() -> (Vec<Run>, Vec<Run>) {
    // SAFETY: no reference to boot services' data is kept: protocols were closed by the functions that opened them, and what
    // they returned was copied to our own heap.
    let map = unsafe { boot::exit_boot_services(None) };
    x86_64::instructions::interrupts::disable();
    let mut memory = Vec::with_capacity(map.len());
    let mut free = Vec::with_capacity(map.len());
    for entry in map.entries() {
        let run = Run {
            start: entry.phys_start,
            end: entry.phys_start + entry.page_count * PAGE as u64,
        };
        match entry.ty {
            MemoryType::CONVENTIONAL
            | MemoryType::BOOT_SERVICES_CODE
            | MemoryType::BOOT_SERVICES_DATA => {
                memory.push(run);
                free.push(run);
            }
            MemoryType::LOADER_CODE
            | MemoryType::LOADER_DATA
            | MemoryType::RUNTIME_SERVICES_CODE
            | MemoryType::RUNTIME_SERVICES_DATA
            | MemoryType::ACPI_RECLAIM
            | MemoryType::ACPI_NON_VOLATILE => memory.push(run),
            _ => {}
        }
    }
    (memory, outpost::memory::tidy(free))
}

fn find_rsdp() -> Option<u64> {
    system::with_config_table(|table| {
        let find = |guid| {
            table
                .iter()
                .find(|entry| entry.guid == guid)
                .map(|entry| entry.address as u64)
        };
        find(ConfigTableEntry::ACPI2_GUID).or_else(|| find(ConfigTableEntry::ACPI_GUID))
    })
}

fn read_tables(rsdp: u64) -> Tables {
    let read = |address: u64, length: usize| {
        let end = address.checked_add(length as u64)?;
        if address < PAGE as u64 || end > 1 << 52 {
            return None;
        }
        // SAFETY: ACPI tables lie in memory that the firmware maps one to one and nobody writes to.
        Some(unsafe { core::slice::from_raw_parts(address as *const u8, length) }.to_vec())
    };
    acpi::read(rsdp, &read).unwrap_or_else(|error| {
        output::problem(error);
        Tables::default()
    })
}

fn find_screen() -> Option<Screen> {
    let handle = boot::get_handle_for_protocol::<GraphicsOutput>().ok()?;
    // SAFETY: only the current mode is read; the firmware's console goes on using the device until boot services end.
    let mut output = unsafe {
        boot::open_protocol::<GraphicsOutput>(
            OpenProtocolParams {
                handle,
                agent: boot::image_handle(),
                controller: None,
            },
            OpenProtocolAttributes::GetProtocol,
        )
    }
    .ok()?;
    let mode = output.current_mode_info();
    let (width, height) = mode.resolution();
    if !matches!(mode.pixel_format(), PixelFormat::Rgb | PixelFormat::Bgr) {
        return None;
    }
    Some(Screen {
        base: output.frame_buffer().as_mut_ptr() as u64,
        width,
        height,
        stride: mode.stride(),
    })
}

fn set_wall_clock() {
    let Ok(time) = runtime::get_time() else {
        output::problem("the firmware does not tell the time: the guest's clock starts at 1970");
        return;
    };
    let days = outpost::calendar::days_since_1970(
        i64::from(time.year()),
        i64::from(time.month()),
        i64::from(time.day()),
    );
    // Minutes by which local time is off UTC; without it the clock is taken to run in UTC.
    let zone = i64::from(time.time_zone().unwrap_or(0));
    let seconds = days * 86_400
        + i64::from(time.hour()) * 3600
        + (i64::from(time.minute()) + zone) * 60
        + i64::from(time.second());
    clock::set_wall_clock(u64::try_from(seconds).unwrap_or(0));
}

fn firmware_random() -> Option<[u8; 32]> {
    let handle = boot::get_handle_for_protocol::<Rng>().ok()?;
    let mut rng = boot::open_protocol_exclusive::<Rng>(handle).ok()?;
    let mut bytes = [0; 32];
    rng.get_rng(None, &mut bytes).ok()?;
    Some(bytes)
}

fn read_config() -> Result<Config, String> {
    let volume = boot::get_image_file_system(boot::image_handle())
        .map_err(|_| String::from("the box was not started from a file system"))?;
    let bytes = FileSystem::new(volume)
        .read(cstr16!("\\outpost.toml"))
        .map_err(|error| match error {
            fs::Error::Io(error) if error.uefi_error.status() == uefi::Status::NOT_FOUND => {
                String::from("there is no outpost.toml on the EFI system partition: put one there")
            }
            _ => String::from("outpost.toml cannot be read: check the EFI system partition"),
        })?;
    Config::parse_bytes(&bytes).map_err(|error| error.to_string())
}
