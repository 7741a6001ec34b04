//! The other end of a box's network port: one Ethernet frame a datagram.

use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How often it is tried to send a frame.
const PATIENCE: u32 = 100;

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

    /// Sends a frame. QEMU's socket holds few: a frame waits for room a little, then it is lost, as on a wire.
    pub fn send(&self, frame: &[u8]) {
        for _ in 0..PATIENCE {
            match self.socket.send_to(frame, &self.box_side) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    std::thread::sleep(Duration::from_micros(200));
                }
                _ => return,
            }
        }
    }

    /// Sends a frame if there is room for one now.
    pub fn try_send(&self, frame: &[u8]) -> bool {
        self.socket.send_to(frame, &self.box_side).is_ok()
    }

    /// Waits until a frame has come, at most so long. True if one has.
    ///
    /// # Errors
    /// When the socket cannot be waited for.
    pub fn wait(&self, limit: Duration) -> Result<bool> {
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        let mut sockets = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut sockets, limit) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::EINTR) => Ok(false),
            Err(error) => Err(error).context("cannot wait for a frame"),
        }
    }

    /// Copies the next frame that has come, as far as there is room, and gives how much that was.
    pub fn receive_into(&self, buffer: &mut [u8]) -> Option<usize> {
        self.socket.recv(buffer).ok()
    }

    /// The next frame that has come.
    pub fn receive(&self) -> Option<Vec<u8>> {
        let mut buffer = vec![0; 65_536];
        let length = self.socket.recv(&mut buffer).ok()?;
        buffer.truncate(length);
        Some(buffer)
    }
}
