//! What the guest's devices have counted, for the pages and the console: above all what the guest did wrong.

use outpost_hv::device::virtio::block::BlockCounters;
use outpost_hv::device::virtio::mmio::TransportCounters;
use outpost_hv::platform::PlatformCounters;
use outpost_net::report::Exposition;
use serde::Serialize;

use crate::appliance::guest;

/// Each paravirtual device with its name.
fn transports(counters: &PlatformCounters) -> [(&'static str, TransportCounters); 4] {
    [
        ("net", counters.net_transport),
        ("console", counters.console_transport),
        ("entropy", counters.entropy_transport),
        ("disk", counters.block_transport),
    ]
}

/// Metrics of the guest that runs.
pub fn append(out: &mut Exposition) {
    let Some((counters, has_disk)) = guest::device_counters() else {
        return;
    };
    type Part = fn(&TransportCounters) -> u64;
    let parts: [(&str, &str, Part); 3] = [
        (
            "outpost_guest_device_notifications_total",
            "Times that the guest's driver notified a device, each an exit.",
            |of| of.notifications,
        ),
        (
            "outpost_guest_device_interrupts_total",
            "Interrupts from a device to the guest.",
            |of| of.interrupts,
        ),
        (
            "outpost_guest_device_stopped_total",
            "Times that a device stopped because of what the guest's driver did.",
            |of| of.stopped,
        ),
    ];
    for (name, help, part) in parts {
        for (device, of) in transports(&counters) {
            if has_disk || device != "disk" {
                out.counter(name, help, &[("device", &device)], part(&of));
            }
        }
    }
    let net = &counters.net;
    for (what, count) in [
        ("sent", net.sent),
        ("sent_dropped", net.sent_dropped),
        ("sent_malformed", net.sent_malformed),
        ("received", net.received),
        ("received_dropped", net.received_dropped),
    ] {
        out.counter(
            "outpost_guest_frames_total",
            "Frames of the guest's network device, by what became of them.",
            &[("what", &what)],
            count,
        );
    }
    for (what, count) in [
        ("port", counters.unclaimed_ports),
        ("memory", counters.unclaimed_memory),
        ("msr", counters.refused_msrs),
    ] {
        out.counter(
            "outpost_guest_refused_accesses_total",
            "The guest's accesses to ports and memory where nothing is, and to MSRs that it may not have.",
            &[("to", &what)],
            count,
        );
    }
    if !has_disk {
        return;
    }
    let disk = &counters.block;
    for (what, count) in [
        ("read", disk.reads),
        ("write", disk.writes),
        ("flush", disk.flushes),
        ("refused", disk.refused),
        ("failed", disk.failed),
    ] {
        out.counter(
            "outpost_guest_disk_requests_total",
            "The guest's requests to its disk, by what became of them.",
            &[("what", &what)],
            count,
        );
    }
}

/// The same for telemetry and console.
#[derive(Serialize)]
pub struct Report {
    guest_devices: Devices,
    guest_refused: Refused,
    #[serde(skip_serializing_if = "Option::is_none")]
    guest_disk: Option<BlockCounters>,
}

#[derive(Serialize)]
struct Devices {
    net: TransportCounters,
    console: TransportCounters,
    entropy: TransportCounters,
    #[serde(skip_serializing_if = "Option::is_none")]
    disk: Option<TransportCounters>,
}

#[derive(Serialize)]
struct Refused {
    ports: u64,
    last_port: u16,
    memory: u64,
    last_address: u64,
    msrs: u64,
    last_msr: u32,
}

impl Report {
    /// Of the guest that runs.
    pub fn now() -> Option<Report> {
        let (counters, has_disk) = guest::device_counters()?;
        Some(Report {
            guest_devices: Devices {
                net: counters.net_transport,
                console: counters.console_transport,
                entropy: counters.entropy_transport,
                disk: has_disk.then_some(counters.block_transport),
            },
            guest_refused: Refused {
                ports: counters.unclaimed_ports,
                last_port: counters.last_unclaimed_port,
                memory: counters.unclaimed_memory,
                last_address: counters.last_unclaimed_address,
                msrs: counters.refused_msrs,
                last_msr: counters.last_refused_msr,
            },
            guest_disk: has_disk.then_some(counters.block),
        })
    }
}
