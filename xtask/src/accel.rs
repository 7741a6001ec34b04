//! What executes the emulated machines' instructions: KVM where a small machine that switches SVM on really runs, else
//! QEMU's own translator. A `/dev/kvm` that opens proves nothing.

use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::Result;

use crate::process::{self, Process, Scratch};
use crate::qemu::PROGRAM;

/// What executes the instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// The kernel's hypervisor, with nested AMD SVM.
    Kvm,
    /// QEMU's translator, which has SVM with nested paging in software.
    Tcg,
}

impl Accelerator {
    /// For QEMU's `-accel`.
    pub fn qemu_option(self) -> &'static str {
        match self {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg,thread=multi",
        }
    }

    /// For QEMU's `-cpu`.
    pub fn cpu_model(self) -> &'static str {
        match self {
            Accelerator::Kvm => "host",
            Accelerator::Tcg => "max",
        }
    }

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Accelerator::Kvm => "KVM",
            Accelerator::Tcg => "TCG (software)",
        }
    }
}

/// The best that this machine can do; found out once in a program's life.
pub fn best() -> Accelerator {
    static BEST: OnceLock<Accelerator> = OnceLock::new();
    *BEST.get_or_init(|| match kvm_runs_svm() {
        Ok(true) => Accelerator::Kvm,
        _ => Accelerator::Tcg,
    })
}

/// Status of QEMU when the probe wrote `SVM_WORKS` to the debug-exit port: `(value << 1) | 1`.
const PROBE_PASSED: i32 = (0x2a << 1) | 1;

/// A boot sector (16-bit code at 0x7c00) that writes 0x2a to port 0x501 if CPUID offers SVM and EFER.SVME can be set, else 0.
///
/// ```text
/// fa                 cli
/// 66 b8 01 00 00 80  mov eax, 0x80000001
/// 0f a2              cpuid
/// 66 f7 c1 04 00 00 00  test ecx, 4          ; SVM (APM vol. 3, E.4.2)
/// 74 23              jz fail
/// 66 b9 80 00 00 c0  mov ecx, 0xc0000080     ; EFER
/// 0f 32              rdmsr
/// 66 0d 00 10 00 00  or eax, 1 << 12         ; SVME (APM vol. 2, 15.4)
/// 0f 30              wrmsr
/// 0f 32              rdmsr
/// 66 a9 00 10 00 00  test eax, 1 << 12
/// 74 09              jz fail
/// ba 01 05           mov dx, 0x501
/// b0 2a              mov al, 0x2a
/// ee                 out dx, al
/// f4 eb fd           hlt; jmp $-1
/// fail:
/// ba 01 05 b0 00 ee  mov dx, 0x501; mov al, 0; out dx, al
/// f4 eb fd           hlt; jmp $-1
/// ```
const PROBE: &[u8] = &[
    0xfa, 0x66, 0xb8, 0x01, 0x00, 0x00, 0x80, 0x0f, 0xa2, 0x66, 0xf7, 0xc1, 0x04, 0x00, 0x00, 0x00,
    0x74, 0x23, 0x66, 0xb9, 0x80, 0x00, 0x00, 0xc0, 0x0f, 0x32, 0x66, 0x0d, 0x00, 0x10, 0x00, 0x00,
    0x0f, 0x30, 0x0f, 0x32, 0x66, 0xa9, 0x00, 0x10, 0x00, 0x00, 0x74, 0x09, 0xba, 0x01, 0x05, 0xb0,
    0x2a, 0xee, 0xf4, 0xeb, 0xfd, 0xba, 0x01, 0x05, 0xb0, 0x00, 0xee, 0xf4, 0xeb, 0xfd,
];

fn kvm_runs_svm() -> Result<bool> {
    if nix::unistd::access(
        "/dev/kvm",
        nix::unistd::AccessFlags::R_OK | nix::unistd::AccessFlags::W_OK,
    )
    .is_err()
    {
        return Ok(false);
    }
    probe(Accelerator::Kvm)
}

/// Runs the probe under `accelerator`.
fn probe(accelerator: Accelerator) -> Result<bool> {
    let scratch = Scratch::new("probe")?;
    let disk = scratch.path().join("boot.img");
    let mut sector = [0u8; 512];
    sector[..PROBE.len()].copy_from_slice(PROBE);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    std::fs::write(&disk, sector)?;
    let mut command = process::command(PROGRAM)?;
    command
        .args([
            "-no-user-config",
            "-nodefaults",
            "-display",
            "none",
            "-M",
            "pc",
            "-m",
            "32",
            "-smp",
            "2",
        ])
        .args([
            "-accel",
            accelerator.qemu_option(),
            "-cpu",
            accelerator.cpu_model(),
        ])
        .args(["-device", "isa-debug-exit,iobase=0x501,iosize=1"])
        .arg("-drive")
        .arg(format!("if=ide,format=raw,file={}", disk.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut process = Process::start(command, "QEMU (probe)")?;
    let status = process.wait_for(Duration::from_secs(20))?;
    Ok(status.and_then(|status| status.code()) == Some(PROBE_PASSED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_passes_where_svm_is_in_software() {
        if process::find_program(PROGRAM).is_none() {
            eprintln!("skipped: {PROGRAM} is not installed");
            return;
        }
        assert!(probe(Accelerator::Tcg).unwrap());
    }
}
