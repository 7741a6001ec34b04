//! When the guest can take a non-maskable interrupt: not between one and the IRET that ends it (APM vol. 2, 8.2.3 and 15.13.3). IRET is intercepted meanwhile;
//! what follows is found out by RIP, as nothing tells when the instruction that was let go has ended.

use super::vmcb::{Control, code, first};
use crate::cpu::NmiWindow;

/// What the last one has come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Nmi {
    /// The next one can be delivered.
    #[default]
    Open,
    /// It is being handled.
    Handled,
    /// The guest is about to execute the IRET at this address.
    Ending(u64),
}

impl Nmi {
    /// Whether another can be delivered.
    pub fn window(self) -> NmiWindow {
        match self {
            Self::Open => NmiWindow::Open,
            Self::Handled => NmiWindow::Closed,
            Self::Ending(_) => NmiWindow::Opening,
        }
    }

    /// One is injected.
    pub fn begin(&mut self, control: &mut Control) {
        control.intercept_first |= first::IRET;
        *self = Self::Handled;
    }

    /// Forgets it, as INIT does.
    pub fn forget(&mut self, control: &mut Control) {
        control.intercept_first &= !first::IRET;
        *self = Self::Open;
    }

    /// After an exit with RIP at `rip`.
    pub fn look(&mut self, rip: u64, control: &mut Control) {
        match *self {
            Self::Handled if control.exit_code as u32 == code::IRET => {
                control.intercept_first &= !first::IRET;
                *self = Self::Ending(rip);
            }
            Self::Ending(iret) if rip != iret => *self = Self::Open,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::vmcb::Vmcb;
    use super::*;

    #[test]
    fn the_next_one_waits_until_the_iret_is_through() {
        let mut vmcb = Vmcb::zeroed();
        let control = &mut vmcb.control;
        let mut nmi = Nmi::default();
        nmi.begin(control);
        control.exit_code = code::CPUID.into();
        nmi.look(0x1000, control);
        assert_eq!(nmi, Nmi::Handled);
        assert!(control.intercept_first & first::IRET != 0);
        control.exit_code = code::IRET.into();
        nmi.look(0x1002, control);
        assert_eq!(nmi, Nmi::Ending(0x1002));
        assert_eq!(nmi.window(), NmiWindow::Opening);
        assert!(control.intercept_first & first::IRET == 0);
        // The box's interrupt came before it.
        control.exit_code = code::INTR.into();
        nmi.look(0x1002, control);
        assert_eq!(nmi, Nmi::Ending(0x1002));
        nmi.look(0x2000, control);
        assert_eq!(nmi, Nmi::Open);
        nmi.begin(control);
        nmi.forget(control);
        assert_eq!((nmi, control.intercept_first & first::IRET), (Nmi::Open, 0));
    }
}
