//! The other end of a box's network port: one Ethernet frame a datagram.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The end that a test holds.
pub struct WireEnd {
    socket: UnixDatagram,
    box_side: PathBuf,
}

impl WireEnd {
    /// Binds `NAME.test` in `folder`; the box will bind `NAME.box`.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn new(folder: &Path, name: &str) -> Result<WireEnd> {
        let path = folder.join(format!("{name}.test"));
        let socket = UnixDatagram::bind(&path)
            .with_context(|| format!("cannot make the socket {}", path.display()))?;
        socket.set_nonblocking(true)?;
        Ok(WireEnd {
            socket,
            box_side: folder.join(format!("{name}.box")),
        })
    }

    /// How QEMU names both ends.
    pub fn qemu_side(&self, folder: &Path, name: &str) -> crate::qemu::Wire {
        crate::qemu::Wire::Datagram {
            local: self.box_side.clone(),
            remote: folder.join(format!("{name}.test")),
        }
    }

    /// Sends a frame. One that the box cannot take now is lost, as on a wire.
    pub fn send(&self, frame: &[u8]) {
        let _ = self.socket.send_to(frame, &self.box_side);
    }

    /// The next frame that has come.
    pub fn receive(&self) -> Option<Vec<u8>> {
        let mut buffer = vec![0; 65_536];
        let length = self.socket.recv(&mut buffer).ok()?;
        buffer.truncate(length);
        Some(buffer)
    }
}
