//! stub
use super::budget::Shares;
use crate::firmware::Findings;
use crate::machine::cpu;
use alloc::string::String;
use outpost::console::GuestSays;

pub struct Wire;
impl Wire {
    pub fn take() -> Self {
        Wire
    }
    pub fn receive(&mut self, _: usize, _: impl FnMut(&[u8])) -> usize {
        0
    }
    pub fn send(&mut self, _: &[u8]) {}
    pub fn flush(&mut self) {}
    pub fn has_received(&self) -> bool {
        false
    }
}
pub fn state() -> String {
    String::from("off")
}
pub fn note(_: GuestSays) {}
pub fn has_console_output() -> bool {
    false
}
pub fn console_output() -> Option<u8> {
    None
}
pub fn console_input(_: u8) {}
pub fn request_restart() {}
pub fn prepare(_: Findings, _: Shares, _: usize) {}
pub fn run() -> ! {
    cpu::halt_for_ever()
}
