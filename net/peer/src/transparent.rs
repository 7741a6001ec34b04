//! Connections that a Linux router hands over by TPROXY or REDIRECT: where they wanted to go says their socket. What no
//! tunnel can take is connected directly, so that the branch is never worse off than without.

use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::rc::Rc;
use std::time::Duration;

use outpost_config::Ipv4Cidr;
use outpost_net::FlowKey;
use outpost_net::engine::Reason;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::flow;
use crate::hub::Hub;
use crate::ledger::Ledger;

/// How long a server may take when it is connected directly.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// Who serves what.
pub struct Routes {
    /// Where the rules lead to.
    pub listen: SocketAddrV4,
    /// Peers with what they serve.
    pub peers: Vec<(Vec<Ipv4Cidr>, Rc<Hub>)>,
    /// The peer for everything else.
    pub other: Option<Rc<Hub>>,
    /// Where it is noted what is connected directly.
    pub ledger: Rc<Ledger>,
}

impl Routes {
    /// What the kernel may hold of the next client's bytes: as little as any peer's flows are allowed.
    pub fn room(&self) -> Option<usize> {
        let hubs = self.peers.iter().map(|(_, hub)| hub).chain(&self.other);
        hubs.map(|hub| hub.room()).min().flatten()
    }
}

/// A listener for connections to any address.
///
/// # Errors
/// The system's.
pub fn listen(at: SocketAddrV4) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    flow::without_delay(&socket);
    if let Err(error) = SockRef::from(&socket).set_ip_transparent_v4(true) {
        log::warn!(
            "[transparent]: {error}: without CAP_NET_ADMIN only REDIRECT rules work, no TPROXY"
        );
    }
    socket.bind(SocketAddr::V4(at))?;
    socket.listen(BACKLOG)
}

/// Carries a connection that was handed over.
pub async fn serve(routes: Rc<Routes>, tcp: TcpStream, client: SocketAddrV4) {
    let Ok(SocketAddr::V4(local)) = tcp.local_addr() else {
        return;
    };
    // With REDIRECT the kernel has changed the destination and remembers it; with TPROXY it has not.
    let original = SockRef::from(&tcp).original_dst_v4().ok();
    let server = original
        .and_then(|address| address.as_socket_ipv4())
        .unwrap_or(local);
    let serves = |(prefixes, _): &&(Vec<Ipv4Cidr>, Rc<Hub>)| {
        prefixes.iter().any(|prefix| prefix.contains(*server.ip()))
    };
    let served = routes.peers.iter().find(serves).map(|(_, hub)| hub);
    if served.is_none() && server == local && server.port() == routes.listen.port() {
        // Would be connected to itself without end.
        log::warn!(
            "{client} connected to {server} itself; [transparent] is for connections that the router hands over"
        );
        flow::reset(&tcp);
        return;
    }
    let key = FlowKey { client, server };
    let reason = match served.or(routes.other.as_ref()) {
        None => Reason::NoPeer,
        Some(hub) if !hub.session.borrow().is_up() => Reason::TunnelDown,
        Some(hub) => {
            return match flow::open(hub, key, &tcp).await {
                Ok(opened) => {
                    routes.ledger.reasons.borrow_mut().count(Reason::Optimised);
                    flow::carry(hub, opened, tcp, &[]).await;
                }
                Err(end) => {
                    flow::say(hub, &key, end);
                    flow::reset(&tcp);
                }
            };
        }
    };
    routes.ledger.direct(client, server, reason);
    direct(tcp, server).await;
}

/// Carries a connection without a tunnel.
async fn direct(mut tcp: TcpStream, server: SocketAddrV4) {
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, flow::connect(server, None, None)).await;
    let Ok(Ok(mut other)) = connected else {
        flow::reset(&tcp);
        return;
    };
    if tokio::io::copy_bidirectional(&mut tcp, &mut other)
        .await
        .is_err()
    {
        flow::reset(&tcp);
        flow::reset(&other);
    }
}
