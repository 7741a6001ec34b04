//! The program as a whole: what a configuration makes of it, reloading, stopping.

use std::cell::RefCell;
use std::fmt;
use std::net::SocketAddrV4;
use std::rc::Rc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use outpost_config::{Peer, ProgramConfig, Proxy, Role};
use outpost_net::flow::SessionConfig;
use outpost_net::tunnel::{Endpoint, TunnelConfig, public_key};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::AbortHandle;

use crate::flow;
use crate::hub::Hub;
use crate::metrics::{self, Hubs};
use crate::store;

/// How long flows may take to finish when the program is asked to stop.
const GRACE: Duration = Duration::from_secs(5);

/// Why the program, or a part of it, cannot start.
#[derive(Debug)]
pub struct StartError(String);

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StartError {}

fn seed() -> Result<[u8; 32], StartError> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed)
        .map_err(|error| StartError(format!("the system gives no random numbers: {error}")))?;
    Ok(seed)
}

/// A new key pair as two lines for `outpost.toml`.
///
/// # Errors
/// The system gives no random numbers.
pub fn keygen() -> Result<String, StartError> {
    let private = seed()?;
    let (private, public) = (
        STANDARD.encode(private),
        STANDARD.encode(public_key(&private)),
    );
    Ok(format!(
        "private_key = \"{private}\"\npublic_key = \"{public}\"\n"
    ))
}

/// The running program. Call everything inside one `tokio::task::LocalSet`.
pub struct Program {
    config: ProgramConfig,
    hubs: Hubs,
    peers: Vec<(Peer, Rc<Hub>, AbortHandle)>,
    proxies: Vec<(Proxy, AbortHandle)>,
}

impl Program {
    /// Starts what `config` says.
    ///
    /// # Errors
    /// An address cannot be listened at.
    pub async fn start(config: ProgramConfig) -> Result<Program, StartError> {
        let mut program = Program {
            hubs: Rc::new(RefCell::new(Vec::new())),
            peers: Vec::new(),
            proxies: Vec::new(),
            config: config.clone(),
        };
        for peer in &config.peers {
            program.add_peer(peer).await?;
        }
        for proxy in &config.proxies {
            program.add_proxy(proxy).await?;
        }
        if let Some(management) = &config.management {
            let listener = listen(management.listen, "[management]").await?;
            tokio::task::spawn_local(metrics::serve(listener, program.hubs.clone()));
        }
        Ok(program)
    }

    async fn add_peer(&mut self, peer: &Peer) -> Result<(), StartError> {
        let at = match self.config.role {
            Role::Core => self.config.listen,
            Role::Branch => SocketAddrV4::new(std::net::Ipv4Addr::UNSPECIFIED, 0),
        };
        let socket = UdpSocket::bind(at)
            .await
            .map_err(|error| StartError(format!("cannot listen at {at} (UDP): {error}")))?;
        let place = store::place(&self.config.store, &peer.name, self.config.peers.len())
            .await
            .map_err(StartError)?;
        let config = SessionConfig {
            tunnel: TunnelConfig::new(self.config.private_key.0, peer.public_key.0),
            endpoint: match self.config.role {
                Role::Core => None,
                Role::Branch => peer.endpoint.map(|at| Endpoint::new(*at.ip(), at.port())),
            },
            seed: seed()?,
            store: place.parts.clone(),
        };
        let opening = std::time::Instant::now();
        let hub = Hub::new(&peer.name, config);
        place.keep(&hub, opening.elapsed());
        let carrier = hub.clone();
        let task = tokio::task::spawn_local(async move {
            if let Err(error) = carrier.carry(socket).await {
                log::error!("{}: the tunnel's socket fails: {error}", carrier.name);
            }
        });
        self.hubs.borrow_mut().push(hub.clone());
        self.peers.push((peer.clone(), hub, task.abort_handle()));
        Ok(())
    }

    async fn add_proxy(&mut self, proxy: &Proxy) -> Result<(), StartError> {
        let listener = listen(proxy.listen, "[[proxy]]").await?;
        let Some((_, hub, _)) = self.peers.iter().find(|(peer, ..)| peer.name == proxy.peer) else {
            return Err(StartError(format!("no peer {}", proxy.peer)));
        };
        let (hub, to) = (hub.clone(), proxy.to);
        let task = tokio::task::spawn_local(async move {
            loop {
                match listener.accept().await {
                    Ok((tcp, _)) => {
                        tokio::task::spawn_local(flow::forward(hub.clone(), tcp, to));
                    }
                    Err(error) => {
                        log::warn!("cannot accept a connection: {error}");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        });
        self.proxies.push((proxy.clone(), task.abort_handle()));
        Ok(())
    }

    /// Goes over to another configuration. Peers and proxies that are in both go on, with their flows; the role, the key,
    /// `listen`, `[store]` and `[management]` are those of the start.
    ///
    /// # Errors
    /// Something new cannot start; the rest goes on.
    pub async fn reload(&mut self, config: ProgramConfig) -> Result<(), StartError> {
        let old = &self.config;
        if (
            config.role,
            &config.private_key,
            config.listen,
            &config.store,
            &config.management,
        ) != (
            old.role,
            &old.private_key,
            old.listen,
            &old.store,
            &old.management,
        ) {
            return Err(StartError(String::from(
                "role, private_key, listen, [store] and [management] change only by a restart; nothing was reloaded",
            )));
        }
        let (keep, gone): (Vec<_>, Vec<_>) = self
            .peers
            .drain(..)
            .partition(|(peer, ..)| config.peers.contains(peer));
        self.peers = keep;
        let changed = |proxy: &Proxy| gone.iter().any(|(peer, ..)| peer.name == proxy.peer);
        self.proxies.retain(|(proxy, task)| {
            let stays = config.proxies.contains(proxy) && !changed(proxy);
            if !stays {
                task.abort();
            }
            stays
        });
        for (_, hub, task) in &gone {
            close(hub).await;
            task.abort();
            self.hubs.borrow_mut().retain(|it| !Rc::ptr_eq(it, hub));
        }
        // The listeners that were given up are closed when their tasks have been dropped.
        tokio::time::sleep(Duration::from_millis(10)).await;
        self.config = config.clone();
        for peer in &config.peers {
            if !self.peers.iter().any(|(it, ..)| it == peer) {
                self.add_peer(peer).await?;
            }
        }
        for proxy in &config.proxies {
            if !self.proxies.iter().any(|(it, _)| it == proxy) {
                self.add_proxy(proxy).await?;
            }
        }
        Ok(())
    }

    /// Stops in order: no new connections, a grace for those there are, then the tunnels.
    pub async fn stop(self) {
        for (_, task) in &self.proxies {
            task.abort();
        }
        let end = tokio::time::Instant::now() + GRACE;
        let busy = || {
            self.peers
                .iter()
                .any(|(_, hub, _)| !hub.slots.borrow().is_empty())
        };
        while busy() && tokio::time::Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for (_, hub, task) in &self.peers {
            close(hub).await;
            task.abort();
        }
    }
}

async fn close(hub: &Hub) {
    hub.session.borrow_mut().close(hub.now());
    hub.dirty.notify_one();
    // The farewell leaves, and flows are told.
    tokio::time::sleep(Duration::from_millis(50)).await;
    hub.session.borrow_mut().close_store();
}

async fn listen(at: SocketAddrV4, what: &str) -> Result<TcpListener, StartError> {
    TcpListener::bind(at)
        .await
        .map_err(|error| StartError(format!("{what}: cannot listen at {at}: {error}")))
}
